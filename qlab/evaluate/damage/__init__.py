"""What rounding single layers costs in predictions, and a budget of bits spent by that."""
