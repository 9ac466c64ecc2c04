"""Lists with filters, order and pages, as every ``*.list`` method of an instance answers them."""

from collections.abc import Callable, Iterable
from math import ceil
from sqlite3 import Row

from sandbox.errors import ApiError
from sandbox.payload import integer, text
from sandbox.storage import Storage, dump

PER_PAGE = 500
MAX_PER_PAGE = 1000

_COMPARISONS = {
    "=": "=", "eq": "=", "!=": "!=", "not": "!=", ">": ">", "gt": ">", ">=": ">=", "gte": ">=",
    "<": "<", "lt": "<", "<=": "<=", "lte": "<=",
}  # fmt: skip


def conditions(filters: object, columns: dict[str, str]) -> tuple[list[str], list[object]]:
    """The SQL conditions of a request's ``filter``.

    Args:
        filters: ``[{"field", "operator", "value"}, ...]``; None is no filter.
        columns: Field names of the API and the SQL expressions they stand for.

    Returns:
        Conditions to join by AND, and the values they bind.

    Raises:
        ApiError: 400 for an unknown field or operator: ignoring a filter would answer something else than asked.
    """
    where: list[str] = []
    values: list[object] = []
    for item in filters or []:
        field, operator, value = text(item, "field"), text(item, "operator", "="), item.get("value")
        if field not in columns:
            raise ApiError(400, f"Cannot filter by {field!r}: expected one of {sorted(columns)}.")
        column = columns[field]
        if operator in ("in", "!in"):
            if not isinstance(value, list):
                raise ApiError(400, f"Operator {operator!r} of field {field!r} needs a list. Received: {value!r}")
            negation = "NOT " if operator == "!in" else ""
            where.append(f"{column} {negation}IN (SELECT value FROM json_each(?))")
            values.append(dump(value))
        elif operator not in _COMPARISONS:
            raise ApiError(400, f"Operator {operator!r} is not known: expected in, !in or {sorted(_COMPARISONS)}.")
        elif value is None and _COMPARISONS[operator] in ("=", "!="):
            where.append(f"{column} IS {'NOT ' if _COMPARISONS[operator] == '!=' else ''}NULL")
        else:
            where.append(f"{column} {_COMPARISONS[operator]} ?")
            values.append(value)
    return where, values


def answer_page(
    storage: Storage,
    body: dict,
    *,
    table: str,
    columns: dict[str, str],
    convert: Callable[[list[Row]], list[dict]],
    where: Iterable[str] = (),
    values: Iterable[object] = (),
    select: str = "*",
) -> dict:
    """One page of a list.

    Args:
        storage: The state.
        body: The request: ``filter``, ``sort``, ``sort_order``, ``page``, ``per_page`` and, for token paging,
            ``pagination_mode`` with ``after``.
        table: The FROM clause.
        columns: Fields that may be filtered and sorted by, and their SQL expressions; ``id`` must be among them.
        convert: Turns rows into the entities of the answer.
        where: Further conditions, joined by AND.
        values: Values bound by ``where``.
        select: The SELECT clause.

    Returns:
        ``{"total", "perPage", "pagesCount", "entities"}`` and, for token paging, ``after`` (None on the last page).
    """
    filter_where, filter_values = conditions(body.get("filter"), columns)
    clause = " AND ".join([*where, *filter_where]) or "1"
    bound = [*values, *filter_values]

    sort = body.get("sort") or "id"
    if sort not in columns:
        raise ApiError(400, f"Cannot sort by {sort!r}: expected one of {sorted(columns)}.")
    order = str(body.get("sort_order") or "asc").lower()
    if order not in ("asc", "desc"):
        raise ApiError(400, f"Field 'sort_order' must be asc or desc. Received: {order!r}")

    by_token = body.get("pagination_mode") == "token"
    per_page = min(integer(body, "per_page", PER_PAGE), MAX_PER_PAGE)
    # The SDK takes the token as opaque; here it is the number of the next page.
    page = integer(body, "after" if by_token else "page", 1)
    if per_page < 1 or page < 1:
        raise ApiError(400, f"Pages are numbered from 1 and hold at least 1 item. Received: {page=}, {per_page=}")

    total = storage.value(f"SELECT COUNT(*) FROM {table} WHERE {clause}", *bound)
    ordering = f"{columns[sort]} {order}, {columns['id']}"
    rows = storage.all(
        f"SELECT {select} FROM {table} WHERE {clause} ORDER BY {ordering} LIMIT ? OFFSET ?",
        *bound, per_page, (page - 1) * per_page,
    )  # fmt: skip
    pages = max(1, ceil(total / per_page))
    result = {"total": total, "perPage": per_page, "pagesCount": pages, "entities": convert(rows)}
    if by_token:
        result["after"] = str(page + 1) if page < pages else None
    return result


def whole(entities: list[dict]) -> dict:
    """The answer of a list that is short enough for one page."""
    return {"total": len(entities), "perPage": max(1, len(entities)), "pagesCount": 1, "entities": entities}
