"""What mypyc is told about classes. At run time it says nothing, so that nothing has to be installed for it.

A compiled class may be subclassed by interpreted code only if it says so:
`@mypyc_attr(allow_interpreted_subclasses=True)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_: Any) -> Any:
        return lambda cls: cls
