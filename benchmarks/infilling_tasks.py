"""Functions with tests, written for benchmarks/infilling.py, which takes single lines out of them.

Each function has a test named check_ and its name. None of them is HumanEval's.
"""

import re
from collections import defaultdict


def parse_duration(text: str) -> int:
    """The seconds of a duration such as "1h30m", "45s" or "2d"; ValueError for anything else."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    total = 0
    position = 0
    for match in re.finditer(r"(\d+)([smhd])", text):
        if match.start() != position:
            raise ValueError(f"bad duration: {text!r}")
        total += int(match.group(1)) * units[match.group(2)]
        position = match.end()
    if position != len(text) or not text:
        raise ValueError(f"bad duration: {text!r}")
    return total


def check_parse_duration() -> None:
    assert parse_duration("1h30m") == 5400
    assert parse_duration("2d") == 172800
    assert parse_duration("10m5s") == 605
    for bad in ("", "x", "1h x", "5", "1h30"):
        try:
            parse_duration(bad)
        except ValueError:
            continue
        raise AssertionError(bad)


def group_by_extension(paths: list[str]) -> dict[str, list[str]]:
    """The paths by their extension in lower case, "" for none; each list is sorted."""
    groups = defaultdict(list)
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        extension = name.rsplit(".", 1)[1].lower() if "." in name else ""
        groups[extension].append(path)
    return {extension: sorted(group) for extension, group in groups.items()}


def check_group_by_extension() -> None:
    found = group_by_extension(["b/x.PY", "a.py", "Makefile", "a.b/README"])
    assert found == {"py": ["a.py", "b/x.PY"], "": ["Makefile", "a.b/README"]}
    assert group_by_extension([]) == {}


def moving_average(values: list[float], window: int) -> list[float]:
    """The mean of each run of `window` values; an empty list where there are too few."""
    if window <= 0:
        raise ValueError("window must be positive")
    averages = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        if index >= window - 1:
            averages.append(total / window)
    return averages


def check_moving_average() -> None:
    assert moving_average([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5]
    assert moving_average([1, 2], 3) == []
    assert moving_average([5], 1) == [5]
    try:
        moving_average([1], 0)
    except ValueError:
        return
    raise AssertionError


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins half-open ranges that overlap or touch; the result is sorted."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            last_start, last_end = merged[-1]
            merged[-1] = (last_start, max(last_end, end))
        else:
            merged.append((start, end))
    return merged


def check_merge_ranges() -> None:
    assert merge_ranges([(5, 7), (1, 3), (2, 4)]) == [(1, 4), (5, 7)]
    assert merge_ranges([(1, 2), (2, 3)]) == [(1, 3)]
    assert merge_ranges([(1, 9), (2, 3)]) == [(1, 9)]
    assert merge_ranges([]) == []


def wrap_words(text: str, width: int) -> list[str]:
    """Breaks a text into lines of at most `width` characters between words; long words stay."""
    lines = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if len(candidate) <= width or not line:
            line = candidate
        else:
            lines.append(line)
            line = word
    if line:
        lines.append(line)
    return lines


def check_wrap_words() -> None:
    assert wrap_words("the quick brown fox", 9) == ["the quick", "brown fox"]
    assert wrap_words("extraordinary a b", 3) == ["extraordinary", "a b"]
    assert wrap_words("", 5) == []


def topological_order(edges: dict[str, list[str]]) -> list[str]:
    """The nodes so that each comes after those it depends on; ValueError for a cycle."""
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(node: str) -> None:
        if state.get(node) == 1:
            raise ValueError(f"cycle at {node}")
        if node in state:
            return
        state[node] = 1
        for dependency in sorted(edges.get(node, [])):
            visit(dependency)
        state[node] = 2
        order.append(node)

    for node in sorted(edges):
        visit(node)
    return order


def check_topological_order() -> None:
    assert topological_order({"a": ["b", "c"], "b": ["c"]}) == ["c", "b", "a"]
    assert topological_order({}) == []
    assert topological_order({"x": [], "y": ["x"], "z": ["x", "y"]}) == ["x", "y", "z"]
    try:
        topological_order({"a": ["b"], "b": ["a"]})
    except ValueError:
        return
    raise AssertionError


def human_size(count: int) -> str:
    """A number of bytes for people: 512 B, 1.5 KiB, 3.0 MiB and so on up to TiB."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def check_human_size() -> None:
    assert human_size(512) == "512 B"
    assert human_size(1536) == "1.5 KiB"
    assert human_size(3 * 1024**2) == "3.0 MiB"
    assert human_size(5000 * 1024**4) == "5000.0 TiB"


def parse_query(query: str) -> dict[str, list[str]]:
    """The values by key of "a=1&b=2&a=3"; a key without "=" has the value "". Empty parts are
    skipped."""
    values: dict[str, list[str]] = {}
    for part in query.lstrip("?").split("&"):
        if not part:
            continue
        key, _, value = part.partition("=")
        values.setdefault(key, []).append(value)
    return values


def check_parse_query() -> None:
    assert parse_query("a=1&b=2&a=3") == {"a": ["1", "3"], "b": ["2"]}
    assert parse_query("?x&&y=") == {"x": [""], "y": [""]}
    assert parse_query("k=a=b") == {"k": ["a=b"]}
    assert parse_query("") == {}


def transpose_table(rows: list[list[str]], fill: str = "") -> list[list[str]]:
    """Rows as columns; short rows are filled up."""
    width = max(map(len, rows), default=0)
    columns: list[list[str]] = [[] for _ in range(width)]
    for row in rows:
        padded = row + [fill] * (width - len(row))
        for index, cell in enumerate(padded):
            columns[index].append(cell)
    return columns


def check_transpose_table() -> None:
    assert transpose_table([["a", "b"], ["c", "d"]]) == [["a", "c"], ["b", "d"]]
    assert transpose_table([["a"], ["b", "c"]], "-") == [["a", "b"], ["-", "c"]]
    assert transpose_table([]) == []


def run_lengths(text: str) -> list[tuple[str, int]]:
    """Each character with how often it stands there in a row."""
    runs: list[tuple[str, int]] = []
    for char in text:
        if runs and runs[-1][0] == char:
            runs[-1] = (char, runs[-1][1] + 1)
        else:
            runs.append((char, 1))
    return runs


def check_run_lengths() -> None:
    assert run_lengths("aaabca") == [("a", 3), ("b", 1), ("c", 1), ("a", 1)]
    assert run_lengths("") == []


def flatten_keys(tree: dict, prefix: str = "") -> dict[str, object]:
    """A nested dictionary as one with dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            flat.update(flatten_keys(value, path))
        else:
            flat[path] = value
    return flat


def check_flatten_keys() -> None:
    assert flatten_keys({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    assert flatten_keys({}) == {}


def binary_search(items: list[int], wanted: int) -> int:
    """The index of `wanted` in sorted items, or -1."""
    low = 0
    high = len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def check_binary_search() -> None:
    for count in range(8):
        items = [3 * n for n in range(count)]
        assert [binary_search(items, item) for item in items] == list(range(count))
        assert binary_search(items, 1) == -1 and binary_search(items, 100) == -1


def apply_discounts(prices: dict[str, float], discounts: dict[str, float]) -> dict[str, float]:
    """The prices less their discounts in percent, rounded to cents; none falls below zero."""
    reduced = {}
    for name, price in prices.items():
        percent = discounts.get(name, 0)
        reduced[name] = max(0.0, round(price * (1 - percent / 100), 2))
    return reduced


def check_apply_discounts() -> None:
    found = apply_discounts({"a": 10.0, "b": 3.33, "c": 5}, {"a": 25, "c": 150})
    assert found == {"a": 7.5, "b": 3.33, "c": 0.0}


def count_lines(source: str) -> tuple[int, int, int]:
    """How many lines of a Python source are code, comments and blank."""
    code = comments = blank = 0
    for line in source.splitlines():
        stripped = line.strip()
        if not stripped:
            blank += 1
        elif stripped.startswith("#"):
            comments += 1
        else:
            code += 1
    return code, comments, blank


def check_count_lines() -> None:
    assert count_lines("x = 1\n\n  # note\ny = 2  # z\n") == (2, 1, 1)
    assert count_lines("") == (0, 0, 0)


def escape_html(text: str) -> str:
    """The text with the characters replaced that mean something in HTML."""
    replacements = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    escaped = []
    for char in text:
        escaped.append(replacements.get(char, char))
    return "".join(escaped)


def check_escape_html() -> None:
    assert escape_html('<a href="x">&</a>') == "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"
    assert escape_html("plain") == "plain"


def shortest_path(graph: dict[str, list[str]], start: str, goal: str) -> list[str]:
    """The nodes of a path with the fewest edges, both ends included; [] where there is none."""
    queue = [[start]]
    seen = {start}
    while queue:
        path = queue.pop(0)
        node = path[-1]
        if node == goal:
            return path
        for neighbour in graph.get(node, []):
            if neighbour not in seen:
                seen.add(neighbour)
                queue.append([*path, neighbour])
    return []


def check_shortest_path() -> None:
    graph = {"a": ["b", "c"], "b": ["d"], "c": ["d", "e"], "d": ["e", "a"], "e": []}
    assert shortest_path(graph, "a", "e") == ["a", "c", "e"]
    assert shortest_path(graph, "a", "a") == ["a"]
    assert shortest_path(graph, "e", "a") == []


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of "v1.2.3" or "1.2"; what follows a dash or plus does not count."""
    core = re.split(r"[-+]", text.strip().removeprefix("v"), maxsplit=1)[0]
    parts = core.split(".")
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"not a version: {text!r}")
    return tuple(int(part) for part in parts)


def check_parse_version() -> None:
    assert parse_version("v1.2.3") == (1, 2, 3)
    assert parse_version(" 1.10-beta.1 ") == (1, 10)
    assert parse_version("2+abc") == (2,)
    try:
        parse_version("1.x")
    except ValueError:
        return
    raise AssertionError


def pairs_within(values: list[int], distance: int) -> int:
    """How many pairs of the values differ by at most `distance`."""
    ordered = sorted(values)
    count = 0
    left = 0
    for right in range(len(ordered)):
        while ordered[right] - ordered[left] > distance:
            left += 1
        count += right - left
    return count


def check_pairs_within() -> None:
    assert pairs_within([1, 2, 4], 1) == 1
    assert pairs_within([5, 5, 5], 0) == 3
    assert pairs_within([9, 1, 8, 2, 7], 2) == 4
    assert pairs_within([], 3) == 0


def rotate_matrix(matrix: list[list[int]]) -> list[list[int]]:
    """The matrix turned clockwise by a quarter."""
    height = len(matrix)
    width = len(matrix[0]) if matrix else 0
    turned = [[0] * height for _ in range(width)]
    for row in range(height):
        for column in range(width):
            turned[column][height - 1 - row] = matrix[row][column]
    return turned


def check_rotate_matrix() -> None:
    assert rotate_matrix([[1, 2, 3], [4, 5, 6]]) == [[4, 1], [5, 2], [6, 3]]
    assert rotate_matrix([]) == []


def balance(entries: list[tuple[str, str, int]]) -> dict[str, int]:
    """The balances after transfers (from, to, amount); accounts at zero are left out."""
    balances: dict[str, int] = defaultdict(int)
    for source, target, amount in entries:
        if amount < 0:
            raise ValueError("negative amount")
        balances[source] -= amount
        balances[target] += amount
    return {name: total for name, total in balances.items() if total != 0}


def check_balance() -> None:
    assert balance([("a", "b", 5), ("b", "c", 5)]) == {"a": -5, "c": 5}
    assert balance([]) == {}
    try:
        balance([("a", "b", -1)])
    except ValueError:
        return
    raise AssertionError
