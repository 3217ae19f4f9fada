"""The text of a `where` (data/where.py): what a condition may hold, and a DuckDB with everything else locked."""

import difflib
import json
import string
from typing import Any, NoReturn

from data.pairs import DataError

MAX_LENGTH = 10_000  # characters of a condition
TABLE = "rows_of_this_source"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ONE = "expected one condition and nothing after it"

# DuckDB files these with the clock's own functions because some of their forms depend on the time zone, which is UTC
# here; and of macros it says nothing.
_ALLOWED = _names(
    """
    + - -> century date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname
    dayofmonth dayofweek dayofyear decade era hour isodow isoyear julian last_day make_timestamptz microsecond
    millennium millisecond minute month monthname quarter second strftime time_bucket week weekday weekofyear year
    yearweek array_append array_prepend array_reverse array_to_string days_in_month fdiv if json list_any_value
    list_append list_avg list_bool_and list_bool_or list_count list_first list_last list_max list_median list_min
    list_mode list_prepend list_product list_reverse list_sum nullif split_part
    """
)
# These look at other things than the row, or make gigabytes of a few characters.
_REFUSED = _names(
    """
    json_serialize_sql json_deserialize_sql json_serialize_plan parse_duckdb_log_message
    bitstring repeat lpad rpad bar format printf array_resize list_resize
    """
)
_EXPRESSIONS = _names(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR TYPE
    """
)
_OTHER_EXPRESSIONS = {
    "SUBQUERY": "a subquery (also = ANY (...); of a list of values write column IN ('a', 'b'))",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter; write the value itself",
    "STAR": "* or COLUMNS(...); name the columns",
    "POSITIONAL_REFERENCE": "a position; name the column",
}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def check_where(key: str, where: str | None) -> None:
    """Check a condition as far as that is possible without rows. Costs nothing where there is none.

    Args:
        key: of the source: `data.sources.NAME`.

    Raises:
        DataError: it is not one deterministic condition on one row; the sentence names the key and the condition.
    """
    if where is not None:
        parse(key, where, connect())


def connect() -> Any:
    import duckdb

    settings: dict[str, Any] = {
        "threads": 1,
        "memory_limit": "1GB",
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,  # else a name of a variable of this process is a table
    }
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'")  # the machine's own otherwise
    connection.execute("SET lock_configuration = true")
    return connection


def parse(key: str, where: str, connection: Any) -> list[str]:
    """The columns that a condition names. Raises: DataError when it is not one deterministic condition."""
    if not isinstance(where, str) or not where.strip():
        refuse(key, where, "expected a SQL condition, e.g. margin >= 0.5")
    if len(where) > MAX_LENGTH:
        refuse(key, where, f"has {len(where):,} characters, at most {MAX_LENGTH:,} are allowed")
    if any(c < " " and c not in "\n\t\r" for c in where):
        refuse(key, where, "holds control characters")
    pure, aggregates = _functions(connection)
    columns: dict[str, None] = {}
    waiting: list[tuple[Any, frozenset[str]]] = [(_syntax_tree(key, where, connection), frozenset())]
    while waiting:  # not by recursion: the tree is as deep as the condition is long
        node, parameters = waiting.pop()  # parameters: of the lambdas around the node
        if isinstance(node, list):
            waiting += [(inner, parameters) for inner in node]
        if not isinstance(node, dict):
            continue
        kind = node.get("class")
        if isinstance(kind, str) and kind not in _EXPRESSIONS:
            refuse(key, where, f"holds {_OTHER_EXPRESSIONS.get(kind, kind)}")
        if kind == "FUNCTION":
            _check_function(key, where, node["function_name"], pure, aggregates)
        if kind == "COLUMN_REF" and node["column_names"][0] not in parameters:
            columns[_column(key, where, node["column_names"])] = None
        # The parser cannot tell the arrow of JSON from that of an old lambda; here it is JSON's.
        if kind == "LAMBDA" and node["syntax_type"] != "SINGLE_ARROW":
            waiting.append((node["expr"], parameters | _lambda_parameters(node["lhs"])))
        else:
            waiting += [(inner, parameters) for inner in node.values()]
    return list(columns)


def _column(key: str, where: str, names: list[str]) -> str:
    if len(names) > 1:
        dotted = ".".join(names)
        refuse(key, where, f"{dotted}: write column->>'$.field' for a field, \"{dotted}\" for such a column")
    return names[0]


def _syntax_tree(key: str, where: str, connection: Any) -> Any:
    """What DuckDB's parser makes of the condition, without positions.

    It is parsed in parentheses, as it is used, and in brackets: text that closes the one does not close the other.
    """
    import duckdb

    try:
        where.encode()
        used = _selected(key, where, f"SELECT (\n{where}\n) FROM {TABLE}", connection)
        listed = _selected(key, where, f"SELECT [\n{where}\n] FROM {TABLE}", connection)
        arguments = listed.get("arguments", []) if listed.get("function_name") == "list_value" else []
        if len(arguments) != 1 or arguments[0]["expression"] != used:
            refuse(key, where, ONE)
    except RecursionError:
        refuse(key, where, "is nested too deep")
    except (duckdb.Error, UnicodeEncodeError) as error:
        refuse(key, where, first_line(error))
    return used


def _selected(key: str, where: str, query: str, connection: Any) -> Any:
    """The one expression that a query over the table selects. Raises: DataError when the query is any other."""
    # All rows of it: a result that is not fetched to its end blocks the connection.
    text = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0]
    tree = json.loads(text, object_hook=lambda node: {k: v for k, v in node.items() if "location" not in k})
    if tree["error"]:
        message = tree["error_message"].splitlines()[0]
        for ours in ("]", ")"):
            if ours not in where:
                message = message.replace(f'at or near "{ours}"', "at its end")
        refuse(key, where, f"{message} (one condition is expected, e.g. margin >= 0.5)")
    select = tree["statements"][0]["node"]
    if len(tree["statements"]) != 1 or select["type"] != "SELECT_NODE" or len(select["select_list"]) != 1:
        refuse(key, where, ONE)
    others = ("where_clause", "having", "sample", "qualify", "group_expressions", "modifiers")
    if any(select[part] for part in others) or select["cte_map"]["map"]:
        refuse(key, where, ONE)
    if select["from_table"].get("table_name") != TABLE:
        refuse(key, where, ONE)
    return select["select_list"][0]


def _functions(connection: Any) -> tuple[set[str], set[str]]:
    """Names of the functions of one row that depend on their arguments alone, and of those over many rows."""
    query = "SELECT lower(function_name), function_type, stability FROM duckdb_functions()"
    known: dict[str, set[tuple[str, str]]] = {}
    for name, kind, stability in connection.execute(query).fetchall():
        known.setdefault(name, set()).add((kind, stability))
    pure = {name for name, forms in known.items() if forms == {("scalar", "CONSISTENT")}}
    return (pure | _ALLOWED) - _REFUSED, {name for name, forms in known.items() if "aggregate" in dict(forms)}


def _check_function(key: str, where: str, name: str, pure: set[str], aggregates: set[str]) -> None:
    if name.lower() in pure and not name.startswith("__"):
        return
    if name.lower() in aggregates:
        refuse(key, where, f"{name}() is an aggregate over rows; a condition sees one row")
    close = difflib.get_close_matches(name.lower(), sorted(pure), 1, cutoff=0.75)
    hint = f" (did you mean {close[0]}?)" if close else ""
    refuse(key, where, f"{name}() is not a function of one row's values alone{hint}")


def _lambda_parameters(node: dict[str, Any]) -> set[str]:
    """Of `lambda x: ...` or `lambda x, y: ...`."""
    nodes = [argument["expression"] for argument in node.get("arguments", [])] or [node]
    return {name for inner in nodes for name in inner.get("column_names", [])}


def lower(name: str) -> str:
    """Lower case as DuckDB compares names: A to Z only."""
    return name.translate(_LOWER)


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def refuse(key: str, where: Any, reason: str) -> NoReturn:
    shown = repr(where) if len(repr(where)) <= 200 else f"{repr(where)[:197]}..."
    raise DataError(f"{key}.where={shown}: {reason}") from None
