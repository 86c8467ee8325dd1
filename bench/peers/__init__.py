"""Headrace's peers on shaped links, beside other ways to bring a file to every node. One module a way."""
