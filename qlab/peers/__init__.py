"""Other libraries doing the same job, behind the same call as qlab's own: the measure that qlab is held against."""
