"""The page in a real browser. Not collected by `python -m pytest`: it needs Chromium, and npm for axe-core.

apt-get install chromium npm        # or name a Chromium in CHROMIUM, and a folder with axe-core/axe.min.js in AXE
python -m pytest tests/browser
"""
