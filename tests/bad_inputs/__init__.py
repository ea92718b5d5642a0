"""Bad inputs, declared once: each is a test, and a row of docs/results/bad-inputs.md.

python -m tests.bad_inputs          write the page
python -m tests.bad_inputs --check  exit 1 if the page is not what would be written
"""
