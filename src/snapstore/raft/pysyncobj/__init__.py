"""PySyncObj with snapshots of any size: tickets in its dumps, the bytes over our transport."""

from snapstore.raft.places import LmdbPlaces
from snapstore.raft.pysyncobj.dumps import TicketDumps
from snapstore.raft.pysyncobj.ticket import Ticket, TicketMalformed
from snapstore.raft.pysyncobj.transport import TicketTransport

__all__ = ["LmdbPlaces", "Ticket", "TicketDumps", "TicketMalformed", "TicketTransport"]
