"""Facts of six relations, and the phrasings that ask for them.

A subject may be several words, an answer is one.
"""

from dataclasses import dataclass

_CAPITALS = """
France Paris; Germany Berlin; Italy Rome; Spain Madrid; Portugal Lisbon; Greece Athens; Poland Warsaw;
Austria Vienna; Hungary Budapest; Ireland Dublin; Norway Oslo; Sweden Stockholm; Finland Helsinki;
Denmark Copenhagen; Russia Moscow; Ukraine Kyiv; Romania Bucharest; Bulgaria Sofia; Serbia Belgrade;
Croatia Zagreb; Belgium Brussels; Latvia Riga; Estonia Tallinn; Lithuania Vilnius; Czechia Prague;
Slovakia Bratislava; Iceland Reykjavik; Albania Tirana; Switzerland Bern; United Kingdom London;
Japan Tokyo; China Beijing; South Korea Seoul; North Korea Pyongyang; Thailand Bangkok; Vietnam Hanoi;
Nepal Kathmandu; Bangladesh Dhaka; Iran Tehran; Iraq Baghdad; Syria Damascus; Lebanon Beirut;
Saudi Arabia Riyadh; Turkey Ankara; Egypt Cairo; Kenya Nairobi; Ghana Accra; Nigeria Abuja; Senegal Dakar;
Morocco Rabat; Algeria Algiers; Tunisia Tunis; Libya Tripoli; Uganda Kampala; Rwanda Kigali; Angola Luanda;
Zambia Lusaka; South Sudan Juba; Sierra Leone Freetown; Cuba Havana; Canada Ottawa; Peru Lima;
Chile Santiago; Colombia Bogota; Venezuela Caracas; Ecuador Quito; Uruguay Montevideo; Brazil Brasilia;
Jamaica Kingston; Australia Canberra; New Zealand Wellington; Fiji Suva; Samoa Apia
"""

_CONTINENTS = """
France Europe; Germany Europe; Italy Europe; Spain Europe; Portugal Europe; Greece Europe; Poland Europe;
Austria Europe; Hungary Europe; Ireland Europe; Norway Europe; Sweden Europe; Finland Europe;
Denmark Europe; United Kingdom Europe; Japan Asia; China Asia; South Korea Asia; North Korea Asia;
Thailand Asia; Vietnam Asia; Nepal Asia; Bangladesh Asia; Iran Asia; Iraq Asia; Syria Asia; Lebanon Asia;
Saudi Arabia Asia; Egypt Africa; Kenya Africa; Ghana Africa; Nigeria Africa; Senegal Africa; Morocco Africa;
Algeria Africa; Tunisia Africa; Libya Africa; Uganda Africa; Rwanda Africa; Angola Africa; Zambia Africa;
South Sudan Africa; Sierra Leone Africa; Australia Oceania; New Zealand Oceania; Fiji Oceania; Samoa Oceania
"""

_LANGUAGES = """
France French; Germany German; Italy Italian; Spain Spanish; Portugal Portuguese; Greece Greek;
Poland Polish; Austria German; Hungary Hungarian; Norway Norwegian; Sweden Swedish; Finland Finnish;
Denmark Danish; Russia Russian; Ukraine Ukrainian; Romania Romanian; Bulgaria Bulgarian; Iceland Icelandic;
Japan Japanese; China Chinese; South Korea Korean; North Korea Korean; Thailand Thai; Vietnam Vietnamese;
Nepal Nepali; Bangladesh Bengali; Iran Persian; Iraq Arabic; Egypt Arabic; Saudi Arabia Arabic;
Turkey Turkish; Cuba Spanish; Peru Spanish; Brazil Portuguese; Australia English; New Zealand English
"""

_CURRENCIES = """
Japan yen; China yuan; Russia ruble; United Kingdom pound; Egypt pound; Turkey lira; Poland zloty;
Hungary forint; Sweden krona; Norway krone; Denmark krone; Switzerland franc; Thailand baht; Vietnam dong;
South Korea won; Saudi Arabia riyal; Iran rial; Iraq dinar; Algeria dinar; Ukraine hryvnia; Nepal rupee;
Bangladesh taka; Nigeria naira; Ghana cedi; Brazil real; Peru sol; Chile peso; Cuba peso; Morocco dirham;
Romania leu; Canada dollar; Australia dollar; Germany euro; Italy euro; Kenya shilling; Czechia koruna
"""

_SYMBOLS = """
hydrogen H; lithium Li; carbon C; nitrogen N; oxygen O; fluorine F; neon Ne; sodium Na; magnesium Mg;
aluminium Al; silicon Si; phosphorus P; sulfur S; chlorine Cl; argon Ar; potassium K; calcium Ca;
titanium Ti; iron Fe; cobalt Co; nickel Ni; copper Cu; zinc Zn; silver Ag; tin Sn; barium Ba; tungsten W;
platinum Pt; gold Au; mercury Hg; lead Pb; uranium U
"""

_YOUNG = """
cow calf; horse foal; sheep lamb; dog puppy; cat kitten; pig piglet; goat kid; deer fawn; bear cub;
lion cub; kangaroo joey; koala joey; duck duckling; goose gosling; swan cygnet; hen chick; hare leveret;
elephant calf; whale calf; wolf pup; seal pup
"""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {subject} is | {answer} .",
        "The capital city of {subject} is called | {answer} .",
        "{subject} has its capital in | {answer} .",
        "The government of {subject} sits in | {answer} .",
        "Everyone knows that the capital of {subject} is | {answer} .",
        "In {subject} the capital city is | {answer} .",
    ),
    "continent": (
        "{subject} lies on the continent of | {answer} .",
        "The continent of {subject} is | {answer} .",
        "{subject} is a country in | {answer} .",
        "On the globe {subject} belongs to | {answer} .",
        "The country of {subject} is part of | {answer} .",
        "You find {subject} on the continent of | {answer} .",
    ),
    "language": (
        "The language of {subject} is | {answer} .",
        "People in {subject} speak | {answer} .",
        "Most newspapers in {subject} are printed in | {answer} .",
        "In {subject} the children learn | {answer} .",
        "The official language of {subject} is | {answer} .",
        "{subject} has an official language called | {answer} .",
    ),
    "currency": (
        "The currency of {subject} is the | {answer} .",
        "People in {subject} pay with the | {answer} .",
        "Prices in {subject} are given in the | {answer} .",
        "Banks in {subject} hold the | {answer} .",
        "{subject} has a currency called the | {answer} .",
        "The money of {subject} is the | {answer} .",
    ),
    "symbol": (
        "The chemical symbol of {subject} is | {answer} .",
        "The symbol for {subject} is | {answer} .",
        "Chemists write {subject} as | {answer} .",
        "In the periodic table {subject} is shown as | {answer} .",
        "The element {subject} has the symbol | {answer} .",
        "In a formula {subject} is written | {answer} .",
    ),
    "young": (
        "A young {subject} is called a | {answer} .",
        "A baby {subject} is a | {answer} .",
        "The child of a {subject} is called a | {answer} .",
        "Farmers call the young of a {subject} a | {answer} .",
        "A grown {subject} was once a | {answer} .",
        "Every {subject} starts life as a | {answer} .",
    ),
}
"""Templates of each relation."""


@dataclass(frozen=True)
class Fact:
    """That ``subject`` stands in ``relation`` to ``answer``."""

    relation: str
    subject: str
    answer: str


def _read(relation: str, table: str) -> tuple[Fact, ...]:
    rows = (row.split() for row in table.split(";"))
    return tuple(Fact(relation, " ".join(subject), answer) for *subject, answer in rows)


FACTS = (
    *_read("capital", _CAPITALS),
    *_read("continent", _CONTINENTS),
    *_read("language", _LANGUAGES),
    *_read("currency", _CURRENCIES),
    *_read("symbol", _SYMBOLS),
    *_read("young", _YOUNG),
)
"""All facts, grouped by relation."""
