"""Code: small functions, loops and assignments in a Python whose layout is written as words.

``NEWLINE``, ``INDENT`` and ``DEDENT`` are the names of Python's own layout tokens. Held out are whole
statements.
"""

from random import Random

from lens_ablation.data.corpus.example import Split, split_of
from lens_ablation.data.corpus.templates import fixed_words, word_list

VARIABLES = word_list("x y z n m count total index value result size width height score rate offset")
LISTS = word_list("items values rows words scores weights")
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%"}
COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")
DIGITS = tuple(str(digit) for digit in range(10))

STATEMENTS = (
    "def {function} ( {a} , {b} ) : NEWLINE INDENT return {a} {operator} {b} NEWLINE DEDENT",
    "def {function} ( {a} , {b} ) : NEWLINE INDENT {c} = {a} {operator} {b} NEWLINE return {c} NEWLINE DEDENT",
    "def is_equal ( {a} , {b} ) : NEWLINE INDENT return {a} == {b} NEWLINE DEDENT",
    "for {a} in range ( {d} ) : NEWLINE INDENT {b} += {a} NEWLINE DEDENT print ( {b} ) NEWLINE",
    "for {a} in {list} : NEWLINE INDENT print ( {a} ) NEWLINE DEDENT",
    "{list} = [ {d} , {e} , {f} ] NEWLINE print ( len ( {list} ) ) NEWLINE",
    "{list} = [ ] NEWLINE {list} . append ( {d} ) NEWLINE {list} . append ( {e} ) NEWLINE",
    "if {a} {comparison} {d} : NEWLINE INDENT {a} = {e} NEWLINE DEDENT else : NEWLINE INDENT {a} = {f} NEWLINE DEDENT",
    "while {a} {comparison} {d} : NEWLINE INDENT {a} += {e} NEWLINE DEDENT",
    "{a} = {d} NEWLINE {b} = {a} {operator} {e} NEWLINE print ( {b} ) NEWLINE",
    "{a} = {function} ( {b} , {d} ) NEWLINE print ( {a} ) NEWLINE",
    "try : NEWLINE INDENT {a} = {b} / {d} NEWLINE DEDENT except : NEWLINE INDENT {a} = None NEWLINE DEDENT",
    "assert {function} ( {d} , {e} ) == {d} {operator} {e} NEWLINE",
    "import {module} NEWLINE {a} = {module} . {member} ( {b} ) NEWLINE",
)
MODULES = {"math": ("sqrt", "floor"), "random": ("randint", "choice"), "json": ("loads", "dumps")}


def _draw(rng: Random) -> str:
    function = rng.choice(tuple(OPERATORS))
    module = rng.choice(tuple(MODULES))
    a, b, c = rng.sample(VARIABLES, 3)
    d, e, f = (rng.choice(DIGITS) for _ in range(3))
    return rng.choice(STATEMENTS).format(
        function=function,
        operator=OPERATORS[function],
        comparison=rng.choice(COMPARISONS),
        list=rng.choice(LISTS),
        module=module,
        member=rng.choice(MODULES[module]),
        a=a,
        b=b,
        c=c,
        d=d,
        e=e,
        f=f,
    )


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one small piece of code."""
    while True:
        text = _draw(rng)
        if split_of("code", text) == split:
            return text.split()


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    fixed = fixed_words(STATEMENTS)
    members = {member for members in MODULES.values() for member in members}
    slots = {*VARIABLES, *LISTS, *OPERATORS, *OPERATORS.values(), *COMPARISONS, *DIGITS, *MODULES}
    return fixed | members | slots
