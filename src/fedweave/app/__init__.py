# SPDX-License-Identifier: Apache-2.0
"""What a person touches: the command line, its live view, the report, the comparison and the demo."""
