"""The attack laboratory: what hostile clients send, what each rule makes of it, and the page with
the results.
"""
