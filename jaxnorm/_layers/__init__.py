"""What the linen and nnx layers share. No framework is imported here, and there are no classes of layers.

calls          from the fields and the call of a layer to the arguments of its function
state          the statistics that batch norm and its relatives keep: names, starts, modes
update         a call of such a layer: y, and what is stored afterwards
recalibration  the statistics of a whole model's norms, measured over batches
watching       what a norm tells of a call where `diagnose` asks
family         arithmetic of the layers without a state
conditional    a scale and a bias made of a condition
weights        the weights of another layer
from_flax      which layers of a model are norms of Flax, and what takes their places
pop_art        a last layer and the statistics of its targets
"""
