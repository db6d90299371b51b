"""One file per SDK; the contract is in :mod:`.base`."""
