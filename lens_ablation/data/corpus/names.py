"""People, places and things that the skills and stories share; every one is a single word."""

from lens_ablation.data.corpus.templates import word_list

FEMALE_NAMES = word_list("""
    Mary Anna Laura Emma Julia Sarah Alice Helen Clara Diana Elena Nora Rachel Susan Karen Linda Lisa Nancy
    Betty Sandra Donna Carol Ruth Sharon Michelle Emily Amanda Melissa Deborah Rebecca Stephanie Cynthia
    Kathleen Amy Angela Brenda Pamela Nicole Katherine Samantha Christine Janet Catherine Maria Heather Jane
    Martha Judith Megan Olivia Hannah Jessica Natalie Vanessa Leah Molly Lucy Irene Eva Monica
    """)
"""Sixty names that take ``she``."""

MALE_NAMES = word_list("""
    John Tom James Robert Michael David William Richard Joseph Thomas Charles Daniel Matthew Anthony Steven
    Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary
    Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Patrick Alexander
    Raymond Dennis Jerry Tyler Aaron Henry Adam Peter Nathan Walter Arthur Philip Simon Hugo Oscar Martin
    Felix
    """)
"""Sixty names that take ``he``."""

NAMES = FEMALE_NAMES + MALE_NAMES

GENDERED_NOUNS = (
    ("queen", "king"),
    ("woman", "man"),
    ("girl", "boy"),
    ("mother", "father"),
    ("sister", "brother"),
    ("aunt", "uncle"),
    ("princess", "prince"),
    ("actress", "actor"),
    ("wife", "husband"),
    ("grandmother", "grandfather"),
    ("daughter", "son"),
    ("niece", "nephew"),
    ("waitress", "waiter"),
    ("duchess", "duke"),
    ("nun", "monk"),
    ("witch", "wizard"),
)
"""Pairs of nouns, the one that takes ``she`` first."""

PLACES = word_list("""
    store park school garden beach library market museum station kitchen office hospital farm river forest
    church theater bakery castle harbor zoo cafe bridge village hotel airport lake barn gym tower meadow
    island
    """)

OBJECTS = word_list("""
    drink book ball ring letter gift flower ticket map hat coat cake pen toy cup lamp bag basket bottle
    camera guitar drum candle blanket kite necklace sandwich cookie coin stone shell mirror clock pencil
    picture scarf spoon bone rope key
    """)
"""Things that one can give; each takes the article ``a``."""

FEELINGS = word_list(
    "happy sad tired angry hungry thirsty scared proud excited lonely calm bored nervous sleepy sick busy"
)
