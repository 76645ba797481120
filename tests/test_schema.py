import pytest
from etl import schema
@pytest.mark.parametrize("i", range(10))
def test_x(engine,i):
    assert schema.differences(engine) is None
