"""All hostile inputs, made from a few seeds; nothing of them is kept in files."""

from tests.recipes.fuzz.archives import archive_cases
from tests.recipes.fuzz.cases import Case
from tests.recipes.fuzz.models import model_cases
from tests.recipes.fuzz.rows import row_cases
from tests.recipes.fuzz.settings import settings_cases
from tests.recipes.fuzz.tables import table_cases
from tests.recipes.fuzz.videos import video_cases


def all_cases() -> list[Case]:
    """Give every case, always in the same order."""
    makers = (
        video_cases,
        row_cases,
        table_cases,
        archive_cases,
        model_cases,
        settings_cases,
    )
    return [case for make in makers for case in make()]
