"""The drawings of each method's own idea; what they show is computed in qlab/workbook/drawn."""
