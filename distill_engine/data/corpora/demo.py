"""Seeded small-talk dialogues: a visitor asks, a person with a trade, a pet and a temper replies.

The dataset has what distillation needs to be seen on two cores in a minute: things to look up in the persona,
facts to remember, sums to do, and replies that are drawn (not fixed) with probabilities that depend on who
speaks. A deterministic dataset would not do: every model would reach perplexity 1 and soft targets would carry
nothing that hard ones do not.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from distill_engine.data.corpora import demo_world as world
from distill_engine.data.episodes import Episode, Split, Turn

Option = TypeVar("Option")
Exchange = tuple[str, str]

DEFAULT_EXAMPLES: Mapping[Split, int] = {"train": 40_000, "valid": 1_000, "test": 1_000}
_TASTE = (8, 4, 2, 1)
_BUCKETS: Mapping[Split, range] = {"train": range(2, 10), "valid": range(0, 1), "test": range(1, 2)}


class Draw:
    """A random stream that is the same on every Python version: only `random()` is used, seeded by a string."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def one(self, options: Sequence[Option]) -> Option:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[Option], weights: Sequence[int]) -> Option:
        """One of the options with probability proportional to its weight."""
        mark = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            mark -= weight
            if mark < 0:
                return option
        return options[-1]

    def taste(self, options: Sequence[Option], temper: str) -> Option:
        """One of four options; which one is likely depends on the temper."""
        shift = world.TEMPERS.index(temper) % len(_TASTE)
        return self.weighted(options, _TASTE[shift:] + _TASTE[:shift])


@dataclass(frozen=True)
class Persona:
    """Who replies. `line()` is all that a model is told about it."""

    name: str
    temper: str
    trade: str
    age: int
    place: str
    pet: str
    colour: str
    pet_name: str
    loves: str
    hates: str
    hobby: str

    @classmethod
    def drawn(cls, draw: Draw) -> Persona:
        """A person at random; love and hate are never the same food."""
        first = draw.below(len(world.FOODS))
        second = (first + 1 + draw.below(len(world.FOODS) - 1)) % len(world.FOODS)
        return cls(
            name=draw.one(world.NAMES),
            temper=draw.one(world.TEMPERS),
            trade=draw.one(tuple(world.TRADES)),
            age=draw.between(20, 79),
            place=draw.one(tuple(world.PLACES)),
            pet=draw.one(tuple(world.PETS)),
            colour=draw.one(world.COLOURS),
            pet_name=draw.one(world.PET_NAMES),
            loves=world.FOODS[first],
            hates=world.FOODS[second],
            hobby=draw.one(tuple(world.HOBBIES)),
        )

    def line(self) -> str:
        """The persona as the first line of a dialogue."""
        return (
            f"you are {self.name}, a {self.temper} {self.trade} of {self.age}. you live {self.place} with a "
            f"{self.colour} {self.pet} called {self.pet_name}. you love {self.loves} and {self.hobby}, "
            f"but not {self.hates}."
        )

    @property
    def split(self) -> Split:
        """The split this person belongs to; nobody appears in two of them, whatever the seed."""
        bucket = zlib.crc32(self.line().encode()) % 10
        return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


@dataclass(frozen=True)
class Scene:
    """Everything a topic may use: who replies, who asks, and the dialogue's random stream."""

    persona: Persona
    visitor: str
    draw: Draw

    def phrase(self, short: str, plain: str, rich: str) -> str:
        """One of three ways to say it, as the temper likes."""
        return self.draw.weighted((short, plain, rich), world.MANNERS[self.persona.temper])

    def taste(self, options: Sequence[str]) -> str:
        """One of four things, as the temper likes."""
        return self.draw.taste(options, self.persona.temper)


def _name(scene: Scene) -> Exchange:
    name = scene.persona.name
    asked = scene.draw.one(("what is your name?", "who are you?", "how shall i call you?"))
    return asked, scene.phrase(f"{name}.", f"my name is {name}.", f"everyone here calls me {name}.")


def _trade(scene: Scene) -> Exchange:
    trade = scene.persona.trade
    made = scene.taste(world.TRADES[trade])
    asked = scene.draw.one(("what is your work?", "what do you do all day?"))
    return asked, scene.phrase(
        f"{made}, mostly.", f"i am a {trade} and make {made}.", f"i am a {trade}, known for my {made}."
    )


def _pet(scene: Scene) -> Exchange:
    who = scene.persona
    habit = scene.taste(world.PETS[who.pet])
    asked = scene.draw.one(("tell me about your pet.", "what is your animal up to?", "do you live alone?"))
    return asked, scene.phrase(
        f"{who.pet_name} {habit}.",
        f"my {who.pet} {who.pet_name} {habit}.",
        f"i have a {who.colour} {who.pet}, and {who.pet_name} {habit} every day.",
    )


def _place(scene: Scene) -> Exchange:
    place = scene.persona.place
    seen = scene.taste(world.PLACES[place])
    asked = scene.draw.one(("where do you live?", "what do you see from your window?"))
    return asked, scene.phrase(
        f"{place}. {seen}.", f"i live {place} and see {seen}.", f"my house is {place}, so i wake up to {seen}."
    )


def _hobby(scene: Scene) -> Exchange:
    hobby = scene.persona.hobby
    joy = scene.taste(world.HOBBIES[hobby])
    asked = scene.draw.one(("what do you do for fun?", "do you have a hobby?"))
    return asked, scene.phrase(f"{hobby}.", f"i enjoy {hobby}, for {joy}.", f"nothing beats {hobby}: i love {joy}.")


def _food(scene: Scene) -> Exchange:
    who = scene.persona
    others = tuple(food for food in world.FOODS if food not in (who.loves, who.hates))
    dish = scene.draw.weighted((who.loves, who.hates, scene.draw.one(others)), (2, 2, 3))
    asked = scene.draw.one((f"do you like {dish}?", f"would you like some {dish}?"))
    odds = {who.loves: (9, 1), who.hates: (1, 9)}.get(dish, world.MANNERS[who.temper][1:])
    if scene.draw.weighted((True, False), odds):
        return asked, scene.phrase("yes.", f"yes, i like {dish}.", f"i could eat {dish} all day long.")
    return asked, scene.phrase("no.", f"no, i would rather have {who.loves}.", f"keep your {dish} away from me.")


def _plan(scene: Scene) -> Exchange:
    weather = scene.draw.one(tuple(world.INDOORS))
    idea = scene.taste(world.INDOORS[weather])
    asked = f"{weather}. what shall we do?"
    return asked, scene.phrase(
        f"{idea}.", f"let us {idea}.", f"when {weather}, i always want to {idea} with {scene.persona.pet_name}."
    )


def _fact(scene: Scene) -> Exchange:
    animal = scene.draw.one(tuple(world.ANIMALS))
    home, food, sound = world.ANIMALS[animal]
    matter = scene.draw.below(3)
    asked = (f"where does the {animal} live?", f"what does the {animal} eat?", f"what sound has the {animal}?")
    known = (f"lives {home}", f"eats {food}", sound)
    short = (f"{home}.", f"{food}.", f"it {sound}.")
    return asked[matter], scene.phrase(
        short[matter], f"the {animal} {known[matter]}.", f"my {scene.persona.trade} friend says it {known[matter]}."
    )


def _bigger(scene: Scene) -> Exchange:
    animals = tuple(world.ANIMALS)
    first = scene.draw.below(len(animals))
    second = (first + 1 + scene.draw.below(len(animals) - 1)) % len(animals)
    large, small = animals[max(first, second)], animals[min(first, second)]
    asked = f"who is bigger, the {animals[first]} or the {animals[second]}?"
    return asked, scene.phrase(
        f"the {large}.", f"the {large} is bigger.", f"next to the {large} the {small} looks tiny."
    )


def _sum(scene: Scene) -> Exchange:
    things = scene.draw.one(world.COUNTABLES)
    first, second = scene.draw.between(1, 9), scene.draw.between(1, 9)
    total, lost = first + second, scene.draw.below(2)
    asked = f"i have {first} {things} and find {second} more. how many?"
    if lost:
        first, total = total, first
        asked = f"i have {first} {things} and lose {second}. how many?"
    number = world.NUMBERS[total]
    return asked, scene.phrase(f"{number}.", f"that makes {number} {things}.", f"i count {number} {things} for you.")


def _birthday(scene: Scene) -> Exchange:
    years = scene.draw.between(1, 9)
    age = scene.persona.age + years
    asked = f"how old will you be in {years} years?"
    return asked, scene.phrase(f"{age}.", f"i will be {age}.", f"if all goes well, i will turn {age}.")


def _memory(scene: Scene) -> Exchange:
    visitor = scene.visitor
    asked = scene.draw.one(("do you remember my name?", "and who am i?"))
    return asked, scene.phrase(f"{visitor}.", f"you are {visitor}.", f"how could i forget you, dear {visitor}?")


_TOPICS: tuple[Callable[[Scene], Exchange], ...] = (
    _name, _trade, _pet, _place, _hobby, _food, _plan, _fact, _bigger, _sum, _birthday, _memory,
)  # fmt: skip


def _reply(scene: Scene, core: str) -> str:
    """The reply as this person says it: opener, core, ending."""
    openers, endings = world.OPENERS[scene.persona.temper], world.ENDINGS[scene.persona.temper]
    opener = scene.draw.weighted(tuple(openers), tuple(openers.values()))
    return opener + core + scene.draw.weighted(tuple(endings), tuple(endings.values()))


def _episode(persona: Persona, draw: Draw) -> Episode:
    scene = Scene(persona, draw.one(world.NAMES), draw)
    opening = f"{persona.line()}\nhello, i am {scene.visitor}. "
    topics, turns = list(_TOPICS), []
    for _ in range(draw.between(2, 3)):
        asked, core = topics.pop(draw.below(len(topics)))(scene)
        turns.append(Turn(text=opening + asked, label=_reply(scene, core)))
        opening = ""
    return Episode(turns=tuple(turns))


def _stream(split: Split, seed: int) -> Iterator[Episode]:
    draw = Draw(f"demo/{split}/{seed}")
    while True:
        persona = Persona.drawn(draw)
        if persona.split == split:
            yield _episode(persona, draw)


def demo_episodes(split: Split, count: int | None = None, seed: int = 0) -> list[Episode]:
    """Episodes that hold `count` labelled turns together; a longer list starts with the shorter one's turns.

    The last episode is cut where the count is reached. None means `DEFAULT_EXAMPLES`. Splits share the world
    (facts, habits, ways of talking) but no person, for any two seeds.
    """
    left = DEFAULT_EXAMPLES[split] if count is None else count
    episodes: list[Episode] = []
    for episode in _stream(split, seed):
        if left <= 0:
            break
        turns = episode.turns[:left]
        episodes.append(Episode(turns=turns))
        left -= len(turns)
    return episodes
