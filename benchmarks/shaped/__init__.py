"""Workers in network namespaces of one Linux machine, over links with a bandwidth and a delay of their own."""
