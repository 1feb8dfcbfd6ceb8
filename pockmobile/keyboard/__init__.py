"""The keyboard: a language model that becomes its owner's."""

from pockmobile.keyboard.gate import Burst
from pockmobile.keyboard.learned import Learned
from pockmobile.keyboard.personalizer import Personalizer
from pockmobile.keyboard.settings import Settings
from pockmobile.keyboard.tokenizer import tokenize
from pockmobile.keyboard.vocabulary import FIRST_OWN, NUM_OWN, Vocabulary

__all__ = [
    "FIRST_OWN",
    "NUM_OWN",
    "Burst",
    "Learned",
    "Personalizer",
    "Settings",
    "Vocabulary",
    "tokenize",
]
