"""What the stages are made of: shared code and features, then one folder per stage."""
import logging

# bitsandbytes logs for developers, as early as at its import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
