"""What the drawings of a method's own idea show, computed from a layer of the model at hand by the functions of qlab/methods."""
