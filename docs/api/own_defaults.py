"""Griffe gives parameters that share a description the first one's default; give each its own."""

from typing import Any

import griffe


class OwnDefaults(griffe.Extension):
    """Take defaults, and types that the docstring leaves out, from the signature."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Correct every docstring of a package."""
        self._correct(pkg)

    def _correct(self, obj: griffe.Module | griffe.Class) -> None:
        for member in obj.members.values():
            if isinstance(member, griffe.Class | griffe.Function) and member.docstring:
                signature = {parameter.name: parameter for parameter in member.parameters}
                types = [id(parameter.annotation) for parameter in member.parameters]
                for section in member.docstring.parsed:
                    if not isinstance(section, griffe.DocstringSectionParameters):
                        continue
                    for documented in section.value:
                        if own := signature.get(documented.name):
                            documented.value = None if own.default is None else str(own.default)
                            if id(documented.annotation) in types:
                                documented.annotation = own.annotation
            if isinstance(member, griffe.Module | griffe.Class):
                self._correct(member)
