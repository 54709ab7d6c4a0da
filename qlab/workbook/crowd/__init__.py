"""What to take for so many users at a time, on what: by what lesson 6 measured on this machine, or by a card's published figures."""
