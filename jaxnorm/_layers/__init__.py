"""What the linen and nnx layers share. No framework is imported here.

calls          from Flax's names to the functions', and the calls of Flax's own norms
parts          what a layer of the family is: fields, parameters, one call
family         the layers of the family without a state
state          the statistics of batch norm, of weights, and their rules
family_state   the layers of the family with a state
pop_art        a last layer and the statistics of its targets
"""
