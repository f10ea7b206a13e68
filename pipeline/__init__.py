"""What the five stages are made of: a ground floor that all stand on, and a wing for each stage."""
import logging

# It speaks to developers, and as early as at its import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
