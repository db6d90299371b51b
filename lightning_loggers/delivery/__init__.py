"""From journal to tracker: the loop (:mod:`.worker`), and where it runs (:mod:`.hosts`, :mod:`.sync`)."""
