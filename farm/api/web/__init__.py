"""The page: HTML rendered from what the API answers, one module per noun.

A page only reads. Its buttons and forms call the REST API (`static/act.js`), by the same scopes and with the
same audit as any client.
"""
