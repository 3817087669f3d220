"""Trained networks at work: what they make of images, and how often they are right."""
