"""Which font draws what."""

from trainer.fonts import font_for, shortened, substitutes


def names(text):
    return [path.name for path in substitutes(text)]


def test_substitutes_hold_what_the_own_font_lacks(installed_fonts):
    installed_fonts('LastResortHE-Regular.ttf', 'DejaVuSerif.ttf', 'STIXGeneral.ttf', 'cmr10.ttf', 'broken.ttf')
    assert names('a cat') == names('Grün, é × Ж α') == names('\n\udce9') == []
    assert names('⤀') == ['STIXGeneral.ttf']  # DejaVuSerif has it, too
    assert names('⤀ᴕᴤᴥ') == ['DejaVuSerif.ttf']
    assert names('⤀猫') == ['STIXGeneral.ttf']


def test_two_scripts_take_two_fonts(installed_fonts):
    installed_fonts('STIXGeneral.ttf', 'DejaVuSansMono.ttf')
    assert names('⤀⍃⍄') == ['DejaVuSansMono.ttf', 'STIXGeneral.ttf']


def test_font_for_pillow(installed_fonts):
    installed_fonts('STIXGeneral.ttf')
    found = [font_for(text, 15).getname() for text in ('grün', '⤀', '猫')]
    assert found == [('DejaVu Sans', 'Book'), ('STIXGeneral', 'Regular'), ('DejaVu Sans', 'Book')]
    assert font_for('', 15, '-Bold').getname() == ('DejaVu Sans', 'Bold')


def test_long_texts_are_shortened():
    font = font_for('', 15)
    assert shortened('a cat', font, 100) == 'a cat'
    text = shortened('a long name of a cat', font, 100)
    assert text.endswith('…') and 80 < font.getlength(text) <= 100
    assert shortened('a\ncat', font, 100) == 'a?cat'
