"""How long things are kept: rules, holds, the pruner, and the service that runs it beside the sealer."""
