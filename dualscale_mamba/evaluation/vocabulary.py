"""Common words from which minimal pairs are made; each list keeps its order, which fixes the pairs."""

from __future__ import annotations

from typing import Final

# (singular, plural)
PEOPLE: Final = (
    ("teacher", "teachers"),
    ("doctor", "doctors"),
    ("boy", "boys"),
    ("girl", "girls"),
    ("king", "kings"),
    ("queen", "queens"),
    ("soldier", "soldiers"),
    ("farmer", "farmers"),
    ("brother", "brothers"),
    ("sister", "sisters"),
    ("friend", "friends"),
    ("man", "men"),
    ("woman", "women"),
    ("child", "children"),
    ("prince", "princes"),
    ("student", "students"),
    ("writer", "writers"),
    ("singer", "singers"),
    ("driver", "drivers"),
    ("judge", "judges"),
    ("captain", "captains"),
    ("servant", "servants"),
    ("player", "players"),
    ("worker", "workers"),
    ("officer", "officers"),
    ("neighbor", "neighbors"),
)
THINGS: Final = (
    ("house", "houses"),
    ("book", "books"),
    ("letter", "letters"),
    ("door", "doors"),
    ("table", "tables"),
    ("picture", "pictures"),
    ("ship", "ships"),
    ("horse", "horses"),
    ("tree", "trees"),
    ("garden", "gardens"),
    ("song", "songs"),
    ("story", "stories"),
    ("box", "boxes"),
    ("chair", "chairs"),
    ("room", "rooms"),
    ("road", "roads"),
    ("bridge", "bridges"),
    ("church", "churches"),
    ("castle", "castles"),
    ("boat", "boats"),
)
ADJECTIVES: Final = (
    "old",
    "new",
    "small",
    "large",
    "little",
    "great",
    "young",
    "beautiful",
    "strange",
    "good",
)
# (verb with a singular subject, with a plural subject, what follows)
PREDICATES: Final = (
    ("is", "are", "very happy"),
    ("is", "are", "in the garden"),
    ("is", "are", "at home"),
    ("is", "are", "from the city"),
    ("was", "were", "very tired"),
    ("was", "were", "in the room"),
    ("was", "were", "born in this town"),
    ("was", "were", "at the door"),
    ("has", "have", "a small house"),
    ("has", "have", "many friends"),
    ("has", "have", "never seen the sea"),
    ("lives", "live", "in the old house"),
    ("works", "work", "in the city"),
    ("walks", "walk", "to the river"),
    ("goes", "go", "to the church"),
    ("comes", "come", "from the north"),
    ("knows", "know", "the way"),
    ("wants", "want", "to go home"),
    ("does", "do", "not know the answer"),
    ("stands", "stand", "near the window"),
)
PREPOSITIONS: Final = ("near", "behind", "beside", "with", "next to", "in front of")
RELATIVE_VERBS: Final = ("saw", "knew", "met", "loved", "helped", "followed")
# (determiner with a singular noun, with a plural noun)
DETERMINERS: Final = (("this", "these"), ("that", "those"), ("one", "many"), ("every", "all"))
PAST_VERBS: Final = ("saw", "liked", "remembered", "found", "bought", "wanted", "painted", "described")
REFLEXIVE_VERBS: Final = (
    "saw",
    "dressed",
    "taught",
    "found",
    "asked",
    "saved",
    "blamed",
    "described",
    "helped",
    "called",
    "hid",
    "defended",
)
REFLEXIVE_ENDINGS: Final = (
    "",
    " that night",
    " that morning",
    " at last",
    " in the end",
    " the next day",
    " after the war",
    " many times",
)
# (singular, plural)
MALE: Final = (
    ("man", "men"),
    ("boy", "boys"),
    ("king", "kings"),
    ("prince", "princes"),
    ("father", "fathers"),
    ("brother", "brothers"),
    ("son", "sons"),
    ("uncle", "uncles"),
)
FEMALE: Final = (
    ("woman", "women"),
    ("girl", "girls"),
    ("queen", "queens"),
    ("princess", "princesses"),
    ("mother", "mothers"),
    ("sister", "sisters"),
    ("daughter", "daughters"),
    ("aunt", "aunts"),
)
