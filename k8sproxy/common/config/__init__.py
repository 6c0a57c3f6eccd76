"""How a configuration file is read: its document with the place of each key, units, addresses, faults."""
