"""User data: cloud-config that EC2 accepts."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tap_stack import SETUP_PATH, USER_DATA_LIMIT, encode_user_data


def test_user_data_writes_the_script_and_runs_it_once() -> None:
    text = base64.b64decode(encode_user_data("#!/bin/bash\necho 'ä\"'\n")).decode()
    heading, _, config = text.partition("\n")
    assert heading == "#cloud-config"
    file = {"path": SETUP_PATH, "permissions": "0700", "content": "#!/bin/bash\necho 'ä\"'\n"}
    assert json.loads(config) == {"write_files": [file], "runcmd": [["bash", SETUP_PATH]]}


def test_user_data_above_the_limit_of_ec2_is_an_error_with_both_numbers() -> None:
    assert USER_DATA_LIMIT == 16_384
    around = len(base64.b64decode(encode_user_data("")))
    largest = "x" * (USER_DATA_LIMIT - around)
    assert len(base64.b64decode(encode_user_data(largest))) == USER_DATA_LIMIT
    message = "user data has 16,385 bytes; EC2 accepts 16,384"
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_user_data(largest + "x")
