"""The pages. Not in a folder `pages`: Streamlit would serve each of its files past `app.py`."""
