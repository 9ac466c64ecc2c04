"""Photos and labels of other formats, made into projects in Supervisely's format.

The SDK's `ImportManager` needs an instance, and its converters draw labels that training must not learn from: of a
palette PNG they read the blue channel, any folders `images` and `masks` are Pascal VOC's twenty classes to them, boxes
become areas, runs of COCO become outlines, and a damaged annotation becomes an empty one. What is right for masks is
used of them: the reading of Cityscapes' polygons and the colours of Pascal VOC and Cityscapes.
"""
