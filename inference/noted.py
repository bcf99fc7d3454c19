"""Objects that write down which of their attributes are read: what is used, told by its use."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from cryoprob.inference.schedule import Schedule

__all__ = ["Noted", "NotedSchedule"]


class Noted:
    """A base of classes whose ``watched`` attributes are noted when they are read.

    Attributes
    ----------
    watched
        Names of these.
    read
        Those of them that were read; nothing is noted before this is there.
    """

    watched: ClassVar[frozenset[str]] = frozenset()
    read: set[str]

    if not TYPE_CHECKING:  # or every name would be an attribute

        def __getattribute__(self, name: str) -> Any:
            if name in type(self).watched:
                vars(self).get("read", set()).add(name)
            return super().__getattribute__(name)


class NotedSchedule(Noted, Schedule):
    """The settings of a schedule, each noted when it is read.

    Parameters
    ----------
    plan
        The schedule.
    """

    watched = frozenset(item.name for item in fields(Schedule))

    def __init__(self, plan: Schedule) -> None:
        values = vars(plan)
        vars(self).update({name: values[name] for name in self.watched}, read=set())
