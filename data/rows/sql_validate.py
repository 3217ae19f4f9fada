"""Checks of a `where` condition (sql_filter.py), and a locked-down DuckDB in a child process that evaluates it.

The child process has limits of memory and CPU time (data/common/child.py): some SQL functions of a single row can take
all memory or run for hours, and inside most of them DuckDB checks neither its memory limit nor interrupts.
"""

import difflib
import json
import string
from typing import Any, NoReturn

import numpy as np

from data.common.child import Child, ChildEnded, cpu_end, limit_cpu, limit_memory
from data.common.errors import DataError

SECONDS = 60  # of CPU time for one chunk of rows
MEMORY, MEMORY_PER_BYTE = 2**30, 20  # bytes for one chunk of rows, and for each byte of the columns it names
MAX_LENGTH = 10_000  # characters of a condition
TABLE = "rows_of_this_source"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ONE = "expected one condition and nothing after it"

# DuckDB marks these as not deterministic because some of their forms depend on the time zone, which is UTC here. Macros
# have no mark.
_ALLOWED = _names("""
    + - -> century date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname
    dayofmonth dayofweek dayofyear decade era hour isodow isoyear julian last_day make_timestamptz microsecond
    millennium millisecond minute month monthname quarter second strftime time_bucket week weekday weekofyear year
    yearweek array_append array_prepend array_reverse array_to_string days_in_month fdiv if json list_any_value
    list_append list_avg list_bool_and list_bool_or list_count list_first list_last list_max list_median list_min
    list_mode list_prepend list_product list_reverse list_sum nullif split_part
""")
# These read other things than the row, or make gigabytes from a few characters.
_REFUSED = _names("""
    json_serialize_sql json_deserialize_sql json_serialize_plan parse_duckdb_log_message
    bitstring repeat lpad rpad bar format printf array_resize list_resize
""")
_EXPRESSIONS = _names("""
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR TYPE
""")
_OTHER_EXPRESSIONS = {
    "SUBQUERY": "a subquery (also = ANY (...); of a list of values write column IN ('a', 'b'))",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter; write the value itself",
    "STAR": "* or COLUMNS(...); name the columns",
    "POSITIONAL_REFERENCE": "a position; name the column",
}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def check_where(key: str, where: str | None) -> None:
    """Check what can be checked of a condition without rows. Raises: DataError that names the key, as `columns_of`."""
    if where is not None:
        columns_of(key, where)


class Failed(Exception):
    """DuckDB cannot evaluate a condition on some rows."""

    def __init__(self, why: str, limit: str | None = None):
        super().__init__(why)
        self.limit = limit  # "memory" or "time" where it exceeds one


def columns_of(key: str, where: str) -> list[str]:
    """The columns that a condition names. Raises: DataError when it is not one deterministic condition."""
    try:
        found = _ask(parse, key, where)
    except Failed as error:
        refuse(key, where, f"{error} to be read")
    if isinstance(found, DataError):
        raise found
    return found


def type_of(query: str, table: Any) -> str:
    """DuckDB's name for the type of a query's first column, over a table with these columns. Raises: Failed."""
    return _ask(_type_of, query, table.schema.empty_table())


def holds(query: str, table: Any) -> np.ndarray:
    """Whether a query's column `holds` is true, (rows,) bool.

    Args: table: a pyarrow Table, to which the query refers as `TABLE`.
    Raises: Failed: on any of the rows, or a limit is too low for all of them together.
    """
    return np.frombuffer(_ask(_holds, query, table), np.bool_)


def release() -> None:
    """End the child now. The next condition gets a new one."""
    _child.release()


def _ask(work: Any, *arguments: Any) -> Any:
    import duckdb  # noqa: F401  # once, here: every child finds them loaded
    import pyarrow  # noqa: F401

    try:
        answer = _child.ask((work.__name__, arguments))
    except ChildEnded as ended:
        if ended.took_too_long:
            raise Failed(f"takes more than {SECONDS} s of CPU time", "time") from None
        raise Failed(f"ended the process that evaluates it ({ended})", "memory") from None
    if isinstance(answer, Failed):
        raise answer
    return answer


# --- in the child ---------------------------------------------------------------------------------------------------

_connection: Any = None


def _answer(request: tuple[str, Any]) -> Any:
    """The answer of `columns_of`, `type_of` or `holds`, or its `Failed` or `DataError`."""
    import duckdb

    global _connection
    work, arguments = request
    if _connection is None:
        _connection = connect()
    limit_cpu(cpu_end(SECONDS))
    memory = MEMORY + MEMORY_PER_BYTE * getattr(arguments[-1], "nbytes", 0)
    limit_memory(memory)
    try:
        return globals()[work](_connection, *arguments)
    except (MemoryError, duckdb.OutOfMemoryException):
        _connection = None
        return Failed(f"needs more than {memory / 2**30:.1f} GiB of memory", "memory")
    except DataError as error:
        return error
    except duckdb.Error as error:
        return Failed(first_line(error))


def _type_of(connection: Any, query: str, table: Any) -> str:
    connection.register(TABLE, table)
    return connection.execute(f"DESCRIBE {query}").fetchall()[0][1]


def _holds(connection: Any, query: str, table: Any) -> bytes:
    connection.register(TABLE, table)
    values = connection.execute(query).fetchnumpy()["holds"]
    assert len(values) == len(table)
    return np.ma.filled(values, False).astype(bool).tobytes()


def connect() -> Any:
    import duckdb

    settings: dict[str, Any] = {
        "threads": 1,
        "memory_limit": "1GB",
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,  # else SQL can name variables of this process as tables
    }
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'")  # the machine's own otherwise
    connection.execute("SET lock_configuration = true")
    return connection


def parse(connection: Any, key: str, where: str) -> list[str]:
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
        # `->` is JSON's or that of an old lambda; the parser cannot tell. Here it is JSON's.
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
    """The condition as DuckDB parses it, without positions.

    It is parsed in parentheses, as it is used, and in brackets: text that closes one does not close the other.
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
    """Names of the functions that depend on their arguments alone, and of the aggregates over many rows."""
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


_child = Child(_answer)
