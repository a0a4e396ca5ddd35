"""Channels over which the learner sends its weights to the processes of the engines, without the object store."""
