"""Figures for papers: attention steps as in the paper's Fig. 2, Acc over AFP, tables with intervals.

``canvas`` alone imports matplotlib, which the extra ``figures`` brings.
"""
