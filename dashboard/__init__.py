"""The web dashboard: Streamlit pages over cached reads. It imports ``storage`` and nothing else of ours."""
