"""OpenLTM's command line for classification, so that commands and notebooks written for it go on working.

`flags.py` holds the flags, `table.py` what is read of the table, `mapping.py` what each flag becomes, `running.py` the
run.
"""

from llueve.compatibility.flags import Flags, parse_flags
from llueve.compatibility.mapping import Mapped, Row, map_flags
from llueve.compatibility.running import run
from llueve.compatibility.table import Table, look_at

__all__ = ["Flags", "Mapped", "Row", "Table", "look_at", "map_flags", "parse_flags", "run"]
