"""The classifier in C: squeezenet.c and squeezenet.h."""
