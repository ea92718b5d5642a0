"""What the types of a spec say about a place in it: its block, its limits, its written form.

pydantic names places with the tags of the unions that it went through,
`tasks, 0, language-modelling, model, n_layer`. Following the annotations tells a tag from a key.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from orchestrator.spec_yaml import Place


@dataclass(frozen=True)
class Walk:
    """Where a place of pydantic leads."""

    place: Place
    """Without the tags."""
    block: type[BaseModel] | None
    """The block that the last key stands in, None within a list or a free dictionary."""
    description: str | None
    """Of the field, as the spec declares it, or of an item's type."""
    limits: tuple[Any, ...]
    """`annotated_types` bounds of the value."""
    tags: tuple[str, ...]
    """When the place is a union of blocks: what their tag may be."""


def walk(loc: Place, model: type[BaseModel]) -> Walk:
    """Follow `loc`, a place that pydantic reports, from the block `model`."""
    annotation: Any = model
    block: type[BaseModel] | None = None
    field: FieldInfo | None = None
    key: FieldInfo | None = None
    limits: tuple[Any, ...] = ()
    place: list[str | int] = []
    for part in loc:
        annotation, _ = _unwrap(annotation)
        members = _members(annotation)
        if len(members) > 1:  # `part` is the tag of one of them
            annotation = next((m for m in members if part in _tags(m)), Any)
        elif part == "[key]":  # pydantic's mark of a key that breaks a rule
            field = key
        else:
            place.append(part)
            block = annotation if _is_block(annotation) else None
            field = block.model_fields.get(str(part)) if block else None
            limits = tuple(field.metadata) if field else ()
            key = None if block else _key(annotation)
            annotation = field.annotation if field else _item(annotation)
    field = field or _declared(annotation)
    annotation, inner = _unwrap(annotation)
    tags = tuple(str(tag) for member in _members(annotation) for tag in _tags(member))
    description = field.description if field else None
    return Walk(tuple(place), block, description, limits + inner, tags)


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take off `Annotated` and `| None`; return what is left and the limits found on the way."""
    limits: tuple[Any, ...] = ()
    while True:
        members = _members(annotation)
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            for item in metadata:
                limits += tuple(item.metadata) if isinstance(item, FieldInfo) else (item,)
        elif len(members) == 1 and members[0] is not annotation:
            annotation = members[0]
        else:
            return annotation, limits


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _tags(member: Any) -> list[Any]:
    """What pydantic may write into a place for this member of a union."""
    if get_origin(member) is Annotated:
        tags = [item.tag for item in get_args(member)[1:] if isinstance(item, Tag)]
        return tags or _tags(get_args(member)[0])
    if _is_block(member):
        return _discriminators(member)
    return [getattr(member, "__name__", None)]


def _discriminators(block: type[BaseModel]) -> list[Any]:
    """The fixed value of `kind` or `source`: a required field with one value it may have."""
    fixed = [field.annotation for field in block.model_fields.values() if field.is_required()]
    values = [get_args(each) for each in fixed if get_origin(each) is Literal]
    return [value[0] for value in values if len(value) == 1]


def _item(annotation: Any) -> Any:
    """Type of the items of a list or tuple, or of the values of a dictionary."""
    arguments = get_args(annotation)
    return arguments[-1] if arguments else Any


def _key(annotation: Any) -> FieldInfo | None:
    """What the keys of a dictionary must be, where it says so."""
    key = get_args(annotation)[:1]
    return _declared(key[0]) if key else None


def _declared(annotation: Any) -> FieldInfo | None:
    """What `Annotated` says of a type, such as that of a list's items."""
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((item for item in metadata if isinstance(item, FieldInfo)), None)


def _is_block(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
