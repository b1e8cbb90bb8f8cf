"""The little world of the demo dialogues: who lives there, what is true there, and how its people talk.

Every table that ends in four options is read through `Draw.taste`: the same four things are likely or rare
depending on the temper of the one who speaks, so what is said has entropy that a model can only learn from
the context. The facts about animals are the same for everyone and have to be remembered.
"""

from __future__ import annotations

NAMES = (
    "mira", "tom", "ada", "finn", "ella", "otto", "nora", "emil", "lena", "hugo", "ida", "paul",
    "rosa", "karl", "alma", "jon", "vera", "max", "tilda", "bruno",
)  # fmt: skip
PET_NAMES = ("pim", "moss", "button", "pepper", "juno", "crumb", "biscuit", "socks", "plum", "nutmeg")
COLOURS = ("grey", "black", "white", "brown", "spotted", "golden")
FOODS = ("plums", "soup", "honey", "cheese", "apples", "toast", "pears", "mushrooms", "cake", "radishes")
COUNTABLES = ("plums", "buttons", "shells", "eggs", "candles", "apples", "stones", "spoons")

# Four results of each trade, four things seen from each window, four habits of each pet, four joys of each hobby.
TRADES: dict[str, tuple[str, str, str, str]] = {
    "baker": ("warm bread", "plum cakes", "little rolls", "honey buns"),
    "tailor": ("winter coats", "blue shirts", "soft hats", "silk ties"),
    "potter": ("round bowls", "tea cups", "tall jugs", "clay birds"),
    "gardener": ("roses", "long beans", "sweet peas", "pumpkins"),
    "miller": ("white flour", "rye flour", "oats", "chicken feed"),
    "painter": ("small portraits", "shop signs", "big skies", "fruit on plates"),
    "carpenter": ("oak tables", "kitchen chairs", "rocking horses", "bird houses"),
    "cook": ("onion soup", "dumplings", "pies", "pancakes"),
}
PLACES: dict[str, tuple[str, str, str, str]] = {
    "by the sea": ("white sails", "gulls", "the lighthouse", "long waves"),
    "in the forest": ("tall pines", "deer", "ferns", "the old oak"),
    "on a hill": ("the whole valley", "sheep", "far church towers", "clouds below me"),
    "near the station": ("slow trains", "people with bags", "the big clock", "pigeons"),
    "by the river": ("ducks", "flat boats", "the stone bridge", "willows"),
    "above a shop": ("the market", "red awnings", "children on bicycles", "the baker's queue"),
}
PETS: dict[str, tuple[str, str, str, str]] = {
    "cat": ("sleeps on my hat", "hunts moths", "stares at walls", "steals butter"),
    "dog": ("barks at the post", "digs up bones", "chases leaves", "guards my shoes"),
    "parrot": ("sings at dawn", "copies my cough", "bites pencils", "tells secrets"),
    "rabbit": ("eats my papers", "hides in boots", "thumps at night", "naps in the sun"),
    "goat": ("climbs the roof", "eats the curtains", "follows the bus", "butts the gate"),
}
HOBBIES: dict[str, tuple[str, str, str, str]] = {
    "chess": ("the quiet", "the horses", "a good trap", "winning"),
    "fishing": ("the early mist", "the waiting", "the big ones", "my little boat"),
    "singing": ("old songs", "the high notes", "the choir", "the echo"),
    "knitting": ("thick wool", "the rhythm", "long scarves", "the clicking"),
    "cycling": ("the wind", "downhill roads", "picnics on the way", "my red bell"),
    "reading": ("sea stories", "sad endings", "maps in books", "the smell of paper"),
}
INDOORS: dict[str, tuple[str, str, str, str]] = {
    "it is raining": ("bake something", "play cards", "read aloud", "watch the drops"),
    "it is snowing": ("build a snowman", "light the stove", "feed the birds", "write letters"),
    "the sun is out": ("go swimming", "lie in the grass", "have a picnic", "paint the fence"),
    "it is very windy": ("fly a kite", "mend the roof", "tell ghost stories", "collect apples"),
    "it is foggy": ("stay in bed", "walk to the bridge", "make soup", "listen to the bells"),
}

# animal: home, food, sound; listed from the smallest to the largest.
ANIMALS: dict[str, tuple[str, str, str]] = {
    "bee": ("in a hive", "nectar", "hums"),
    "snail": ("under a leaf", "lettuce", "says nothing"),
    "mouse": ("behind the stove", "crumbs", "squeaks"),
    "toad": ("under the steps", "flies", "croaks"),
    "mole": ("below the lawn", "worms", "snuffles"),
    "squirrel": ("high in a tree", "nuts", "chatters"),
    "hedgehog": ("in a heap of leaves", "beetles", "grunts"),
    "owl": ("in the barn", "mice", "hoots"),
    "hare": ("in the open field", "clover", "keeps quiet"),
    "otter": ("in the river bank", "fish", "whistles"),
    "fox": ("in a den", "almost anything", "yelps"),
    "swan": ("on the lake", "water weeds", "hisses"),
    "sheep": ("on the meadow", "grass", "bleats"),
    "donkey": ("in the stable", "thistles", "brays"),
    "bear": ("in a cave", "berries", "growls"),
    "whale": ("in the deep sea", "tiny shrimps", "sings"),
}

NUMBERS = (
    "none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip

# How each temper begins a reply, how it likes to put things (short, plain, rich), and how it ends: option -> weight.
OPENERS: dict[str, dict[str, int]] = {
    "cheerful": {"": 3, "oh, ": 3, "ha! ": 6, "gladly! ": 2},
    "shy": {"": 6, "um, ": 6, "well, ": 3, "oh, ": 1},
    "grumpy": {"": 8, "hmpf. ": 6, "well, ": 1, "again? ": 2},
    "dreamy": {"": 2, "ah, ": 6, "hm, ": 4, "oh, ": 3},
    "proper": {"": 5, "certainly. ": 6, "well, ": 3, "gladly! ": 1},
    "curious": {"": 4, "hm, ": 3, "good question! ": 5, "oh, ": 2},
}
MANNERS: dict[str, tuple[int, int, int]] = {
    "cheerful": (1, 3, 5),
    "shy": (7, 2, 1),
    "grumpy": (6, 4, 1),
    "dreamy": (1, 2, 6),
    "proper": (1, 7, 2),
    "curious": (3, 4, 3),
}
ENDINGS: dict[str, dict[str, int]] = {
    "cheerful": {"": 4, " isn't it lovely?": 3, " hooray!": 2},
    "shy": {"": 8, " i think.": 3, " sorry.": 1},
    "grumpy": {"": 6, " so what?": 3, " leave me be.": 2},
    "dreamy": {"": 4, " like in a dream.": 3, " i wonder why.": 2},
    "proper": {"": 7, " thank you for asking.": 4, " i am quite sure.": 1},
    "curious": {"": 3, " and you?": 5, " why do you ask?": 3},
}
TEMPERS = tuple(OPENERS)
