"""Which parts are chosen at a cursor, and what they look like together."""

from __future__ import annotations

from fim import Snippet
from fim.project import Place, Source, better, choose, parts_of

SHOP = '''class Basket:
    def add_article(self, number): ...
    def total_price(self): ...


def open_shop(name):
    """..."""
'''
OTHER = "def parse_header(text):\n    pass\n\n\ndef total_weight(basket):\n    pass\n"


def count(text: str) -> int:
    return len(text.split())


def sources(weight: float = 1.0) -> list[Source]:
    shop = Source("imported", weight, parts_of(SHOP, "shop.py", "python"))
    return [shop, Source("open", 1.0, parts_of(OTHER, "other.py", "python"))]


def test_the_best_come_last_each_file_once_and_in_its_own_order() -> None:
    snippets = choose(Place("price = basket.total_", "\n"), sources(), 100, count)
    assert [each.path for each in snippets] == ["other.py", "shop.py"]
    methods = "    def add_article(self, number): ...\n    def total_price(self): ...\n"
    assert snippets[1].text == f"class Basket:\n{methods}"
    assert snippets[1].origin == "imported"
    assert snippets[1].score > snippets[0].score > 0
    assert "parse_header" not in snippets[0].text


def test_they_fit_into_the_budget() -> None:
    place = Place("shop open basket total article name header", "")
    for budget in range(0, 60, 5):
        snippets = choose(place, sources(), budget, count)
        assert sum(count(each.path) + count(each.text) for each in snippets) <= budget


def test_what_stands_at_the_cursor_is_not_shown_again() -> None:
    place = Place(SHOP + "total_", "")
    assert [each.path for each in choose(place, sources(), 100, count)] == ["other.py"]


def test_the_nearer_a_word_stands_the_more_it_counts() -> None:
    near = Place("total_weight\n" * 9 + "\n" * 30 + "header", "")
    best = choose(near, sources(), 12, count)[-1]
    assert "parse_header" in best.text


def test_what_is_imported_by_its_name_comes_first() -> None:
    place = Place("x = total_", "", frozenset({"open_shop"}))
    assert "open_shop" in choose(place, sources(), 12, count)[-1].text


def test_what_may_not_be_shown_makes_room_for_others() -> None:
    place = Place("basket.total_", "")
    snippets = choose(place, sources(), 12, count, lambda part: part.name != "total_price")
    assert "total_price" not in str(snippets)
    assert "total_weight" in str(snippets)


def test_others_have_to_be_much_better() -> None:
    old = (Snippet("a", "", "", 10.0),)
    assert better((), old)
    assert not better(old, (Snippet("b", "", "", 12.0),))
    assert better(old, (Snippet("b", "", "", 14.0),))
