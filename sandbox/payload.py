"""Reading fields of a request's JSON body, with an error that names the field."""

from sandbox.errors import ApiError

_MISSING = object()


def _get(body: object, key: str) -> object:
    if not isinstance(body, dict):
        raise ApiError(400, f"Expected an object with field {key!r}. Received: {body!r}")
    return body.get(key)


def integer(body: dict, key: str, default: object = _MISSING) -> int:
    """The integer under ``key``; digits in a string are accepted, as on an instance.

    Raises:
        ApiError: 400 if the key is absent without a default, or is no integer.
    """
    value = _get(body, key)
    if value is None:
        if default is _MISSING:
            raise ApiError(400, f"Field {key!r} is required: expected an integer.")
        return default
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ApiError(400, f"Field {key!r} must be an integer. Received: {value!r}")
    try:
        return int(value)
    except ValueError:
        raise ApiError(400, f"Field {key!r} must be an integer. Received: {value!r}") from None


def text(body: dict, key: str, default: object = _MISSING) -> str:
    """The string under ``key``, not empty unless it is the default.

    Raises:
        ApiError: 400 if the key is absent or empty without a default, or is no string.
    """
    value = _get(body, key)
    if value is None or value == "":
        if default is _MISSING:
            raise ApiError(400, f"Field {key!r} is required: expected a non-empty string.")
        return default
    if not isinstance(value, str):
        raise ApiError(400, f"Field {key!r} must be a string. Received: {value!r}")
    return value


def items(body: dict, key: str) -> list:
    """The list under ``key``.

    Raises:
        ApiError: 400 if the key is absent or is no list.
    """
    value = _get(body, key)
    if not isinstance(value, list):
        raise ApiError(400, f"Field {key!r} is required: expected a list. Received: {value!r}")
    return value


def integers(body: dict, key: str) -> list[int]:
    """The list of integers under ``key``, in its order.

    Raises:
        ApiError: 400 if the key is absent or holds anything but integers.
    """
    return [integer({key: value}, key) for value in items(body, key)]


def mapping(body: dict, key: str, default: object = _MISSING) -> dict:
    """The JSON object under ``key``.

    Raises:
        ApiError: 400 if the key is absent without a default, or is no object.
    """
    value = _get(body, key)
    if value is None and default is not _MISSING:
        return default
    if not isinstance(value, dict):
        raise ApiError(400, f"Field {key!r} must be an object. Received: {value!r}")
    return value
