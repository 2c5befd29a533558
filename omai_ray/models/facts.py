"""The simple facts the demonstration model knows, by family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FactFamily:
    """Facts of one kind: subject to answer, the ways to ask, and the sentence that answers."""

    name: str
    answers: dict[str, str]
    questions: tuple[str, ...]
    reply: str


def _pairs(text: str) -> dict[str, str]:
    entries = (entry.split(":") for entry in text.replace("\n", " ").split(","))
    return {subject.strip(): answer.strip() for subject, answer in entries}


CAPITALS = FactFamily(
    "capital",
    _pairs("""France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon,
    Japan:Tokyo, China:Beijing, India:New Delhi, Russia:Moscow, Canada:Ottawa,
    Australia:Canberra, Brazil:Brasília, Argentina:Buenos Aires, Egypt:Cairo, Kenya:Nairobi,
    Nigeria:Abuja, Greece:Athens, Turkey:Ankara, Poland:Warsaw, Austria:Vienna,
    Switzerland:Bern, Belgium:Brussels, the Netherlands:Amsterdam, Denmark:Copenhagen,
    Sweden:Stockholm, Norway:Oslo, Finland:Helsinki, Ireland:Dublin, the United Kingdom:London,
    England:London, Scotland:Edinburgh, Wales:Cardiff, Iceland:Reykjavik,
    the United States:Washington, Mexico:Mexico City, Cuba:Havana, Peru:Lima, Chile:Santiago,
    Colombia:Bogotá, Thailand:Bangkok, Vietnam:Hanoi, South Korea:Seoul, Indonesia:Jakarta,
    New Zealand:Wellington, Hungary:Budapest, Romania:Bucharest, Bulgaria:Sofia, Ukraine:Kyiv,
    Croatia:Zagreb, Serbia:Belgrade, Iran:Tehran, Iraq:Baghdad, Morocco:Rabat, Tunisia:Tunis,
    Estonia:Tallinn, Latvia:Riga, Lithuania:Vilnius, Ghana:Accra, Senegal:Dakar,
    Ecuador:Quito"""),
    (
        "What is the capital of {subject}?",
        "What's the capital of {subject}?",
        "Which city is the capital of {subject}?",
        "Tell me the capital of {subject}.",
        "Name the capital of {subject}.",
        "Can you tell me the capital of {subject}?",
        "{subject}: what is its capital?",
        "What is {subject}'s capital city?",
        "Capital of {subject}?",
        "Do you know the capital of {subject}?",
        "What city is {subject}'s capital?",
        "I need to know the capital of {subject}.",
        "Which city is {subject}'s capital?",
        "What is the capital city of {subject}?",
        "Give me the capital of {subject}.",
        "The capital of {subject} is what?",
        "Please name the capital city of {subject}.",
        "What would be the capital of {subject}?",
    ),
    "The capital of {subject} is {answer}.",
)
COLOURS_OF = FactFamily(
    "colour",
    _pairs("""the sky:blue, grass:green, snow:white, a banana:yellow, a lemon:yellow, blood:red,
    a carrot:orange, coal:black, milk:white, an orange:orange, a ripe tomato:red, chocolate:brown,
    a flamingo:pink, an elephant:grey, the sun:yellow, a polar bear:white, a raven:black,
    an emerald:green, a ruby:red, a sapphire:blue, a strawberry:red, broccoli:green, salt:white,
    an aubergine:purple, a cucumber:green, a frog:green"""),
    (
        "What colour is {subject}?",
        "What color is {subject}?",
        "Which colour is {subject}?",
        "Tell me the colour of {subject}.",
        "What is the colour of {subject}?",
        "Do you know what colour {subject} is?",
        "What's the color of {subject}?",
        "Which color is {subject} usually?",
        "Can you tell me what color {subject} is?",
        "What colour would you say {subject} is?",
        "What colour is {subject} normally?",
        "Name the color of {subject}.",
    ),
    "The colour of {subject} is {answer}.",
)
OPPOSITES = FactFamily(
    "opposite",
    _pairs("""hot:cold, cold:hot, big:small, small:big, fast:slow, slow:fast, up:down, down:up,
    left:right, light:dark, dark:light, day:night, night:day, young:old, rich:poor, poor:rich,
    happy:sad, sad:happy, open:closed, wet:dry, dry:wet, hard:soft, soft:hard, early:late,
    late:early, tall:short, strong:weak, weak:strong, full:empty, empty:full, good:bad,
    bad:good, black:white, white:black, in:out, out:in, over:under, high:low, low:high,
    clean:dirty, dirty:clean, loud:quiet, quiet:loud, first:last, last:first, true:false,
    false:true, yes:no, heavy:light, cheap:expensive, near:far, far:near, thick:thin,
    thin:thick, wide:narrow, narrow:wide, win:lose, love:hate, start:stop, buy:sell, push:pull,
    before:after, always:never, easy:difficult"""),
    (
        "What is the opposite of {subject}?",
        "What's the opposite of {subject}?",
        'What is the opposite of "{subject}"?',
        "Tell me the opposite of {subject}.",
        "Give me the opposite of the word {subject}.",
        "Which word is the opposite of {subject}?",
        "Name the opposite of {subject}.",
        "Opposite of {subject}?",
        "What word means the opposite of {subject}?",
        "Do you know the opposite of {subject}?",
        "What is the opposite word for {subject}?",
        "Can you give me the opposite of {subject}?",
        "The opposite of {subject} is what?",
    ),
    "The opposite of {subject} is {answer}.",
)
NEXT_DAY = FactFamily(
    "next_day",
    _pairs("""Monday:Tuesday, Tuesday:Wednesday, Wednesday:Thursday, Thursday:Friday,
    Friday:Saturday, Saturday:Sunday, Sunday:Monday"""),
    (
        "What day comes after {subject}?",
        "Which day comes after {subject}?",
        "What day is after {subject}?",
        "What is the day after {subject}?",
        "Which day follows {subject}?",
        "Tell me the day after {subject}.",
        "If today is {subject}, what day is tomorrow?",
        "What day follows {subject}?",
        "Name the day after {subject}.",
        "What's the next day after {subject}?",
        "Can you tell me the day that follows {subject}?",
        "Today is {subject}. What is tomorrow?",
    ),
    "The day after {subject} is {answer}.",
)
PREVIOUS_DAY = FactFamily(
    "previous_day",
    {answer: subject for subject, answer in NEXT_DAY.answers.items()},
    (
        "What day comes before {subject}?",
        "Which day comes before {subject}?",
        "What day is before {subject}?",
        "What is the day before {subject}?",
        "Which day is just before {subject}?",
        "Tell me the day before {subject}.",
        "If today is {subject}, what day was yesterday?",
        "Name the day before {subject}.",
        "What's the day right before {subject}?",
        "Today is {subject}. What was yesterday?",
        "Can you tell me which day comes before {subject}?",
    ),
    "The day before {subject} is {answer}.",
)
_MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
NEXT_MONTH = FactFamily(
    "next_month",
    dict(zip(_MONTHS, _MONTHS[1:] + _MONTHS[:1], strict=True)),
    (
        "What month comes after {subject}?",
        "Which month comes after {subject}?",
        "What is the month after {subject}?",
        "Which month follows {subject}?",
        "What month is after {subject}?",
        "Tell me the month after {subject}.",
        "Name the month that follows {subject}.",
        "What month follows {subject}?",
        "What's the next month after {subject}?",
        "If it is {subject} now, what month comes next?",
        "Can you tell me the month after {subject}?",
    ),
    "The month after {subject} is {answer}.",
)
SOUNDS = FactFamily(
    "sound",
    _pairs("""dog:woof, cat:meow, cow:moo, sheep:baa, duck:quack, pig:oink, horse:neigh,
    lion:roar, bee:buzz, snake:hiss, owl:hoot, frog:croak, mouse:squeak, chicken:cluck,
    wolf:howl, donkey:bray"""),
    (
        "What sound does a {subject} make?",
        "Which sound does a {subject} make?",
        "What noise does a {subject} make?",
        "What does a {subject} say?",
        "How does a {subject} sound?",
        "Tell me the sound a {subject} makes.",
        "What does the {subject} say?",
        "Which noise does a {subject} make?",
        "Make the sound of a {subject}.",
        "What sound do you hear from a {subject}?",
        "What noise would a {subject} make?",
    ),
    'A {subject} says "{answer}".',
)
BABIES = FactFamily(
    "baby",
    _pairs("""dog:puppy, cat:kitten, cow:calf, sheep:lamb, duck:duckling, pig:piglet, horse:foal,
    lion:cub, goat:kid, frog:tadpole, swan:cygnet, goose:gosling, chicken:chick, kangaroo:joey,
    deer:fawn, owl:owlet"""),
    (
        "What is a baby {subject} called?",
        "What do you call a baby {subject}?",
        "What's a baby {subject} called?",
        "What is the name for a baby {subject}?",
        "How do you call a young {subject}?",
        "What do we call a young {subject}?",
        "Tell me what a baby {subject} is called.",
        "What is a young {subject} called?",
        "Name the young of a {subject}.",
        "What's the word for a baby {subject}?",
        "Do you know what a baby {subject} is called?",
    ),
    "A baby {subject} is called a {answer}.",
)
LEGS = FactFamily(
    "legs",
    _pairs("""dog:4, cat:4, horse:4, cow:4, spider:8, bird:2, ant:6, bee:6, fly:6, snake:0,
    fish:0, chicken:2, frog:4, crab:10, person:2, elephant:4, penguin:2, duck:2, octopus:0,
    beetle:6"""),
    (
        "How many legs does a {subject} have?",
        "What number of legs does a {subject} have?",
        "How many legs has a {subject} got?",
        "Tell me how many legs a {subject} has.",
        "A {subject} has how many legs?",
        "How many legs are there on a {subject}?",
        "Do you know how many legs a {subject} has?",
        "Count the legs of a {subject}.",
        "How many legs would a {subject} have?",
        "How many legs on a {subject}?",
        "Can you tell me how many legs a {subject} has?",
    ),
    "A {subject} has {answer} legs.",
)
CONTINENTS = FactFamily(
    "continent",
    _pairs("""France:Europe, Germany:Europe, Italy:Europe, Spain:Europe, Poland:Europe,
    Greece:Europe, Sweden:Europe, Norway:Europe, Portugal:Europe, Japan:Asia, China:Asia,
    India:Asia, Thailand:Asia, Vietnam:Asia, Iran:Asia, Iraq:Asia, Indonesia:Asia, Egypt:Africa,
    Kenya:Africa, Nigeria:Africa, Morocco:Africa, Ghana:Africa, Senegal:Africa,
    Canada:North America, Mexico:North America, Cuba:North America,
    the United States:North America, Brazil:South America, Peru:South America,
    Argentina:South America, Chile:South America, Colombia:South America"""),
    (
        "Which continent is {subject} in?",
        "On which continent is {subject}?",
        "What continent is {subject} in?",
        "{subject} is in which continent?",
        "What continent is {subject} on?",
        "Tell me the continent of {subject}.",
        "Where in the world is {subject}?",
        "In which continent can I find {subject}?",
        "What continent does {subject} belong to?",
        "Do you know which continent {subject} is in?",
        "Which continent is {subject} part of?",
        "Name the continent where {subject} is.",
    ),
    "{subject} is in {answer}.",
)
SPOKEN = FactFamily(
    "language",
    _pairs("""France:French, Germany:German, Italy:Italian, Spain:Spanish, Portugal:Portuguese,
    Japan:Japanese, China:Chinese, Russia:Russian, Brazil:Portuguese, Mexico:Spanish,
    Greece:Greek, Turkey:Turkish, Poland:Polish, Austria:German, Denmark:Danish, Sweden:Swedish,
    Finland:Finnish, Hungary:Hungarian, Egypt:Arabic, Argentina:Spanish, South Korea:Korean,
    England:English, Australia:English, Cuba:Spanish, Norway:Norwegian, Thailand:Thai,
    Vietnam:Vietnamese"""),
    (
        "What language is spoken in {subject}?",
        "Which language is spoken in {subject}?",
        "What language do people speak in {subject}?",
        "Which language do they speak in {subject}?",
        "What do people speak in {subject}?",
        "Tell me the language of {subject}.",
        "What is the main language of {subject}?",
        "What is the language of {subject}?",
        "Name the language spoken in {subject}.",
        "Which language do people in {subject} speak?",
        "In {subject}, what language is spoken?",
        "What language would I hear in {subject}?",
    ),
    "People in {subject} speak {answer}.",
)
SYMBOLS = FactFamily(
    "symbol",
    _pairs("""hydrogen:H, helium:He, carbon:C, nitrogen:N, oxygen:O, sodium:Na, iron:Fe,
    copper:Cu, silver:Ag, gold:Au, lead:Pb, tin:Sn, zinc:Zn, mercury:Hg, neon:Ne, calcium:Ca,
    sulphur:S, potassium:K, water:H2O"""),
    (
        "What is the chemical symbol for {subject}?",
        "What's the chemical symbol of {subject}?",
        "What is the symbol for {subject}?",
        "Tell me the chemical symbol of {subject}.",
        "Which symbol stands for {subject}?",
        "Chemical symbol for {subject}?",
        "Give me the chemical symbol for {subject}.",
        "Name the chemical symbol of {subject}.",
        "What symbol does {subject} have in chemistry?",
        "How do you write {subject} in chemistry?",
        "Do you know the symbol of {subject}?",
    ),
    "The chemical symbol for {subject} is {answer}.",
)
QUANTITIES = FactFamily(
    "quantity",
    _pairs("""days in a week:7, months in a year:12, hours in a day:24, minutes in an hour:60,
    seconds in a minute:60, days in a year:365, weeks in a year:52, sides on a triangle:3,
    sides on a square:4, sides on a hexagon:6, letters in the alphabet:26,
    continents in the world:7, planets in the solar system:8, players in a football team:11,
    years in a century:100, years in a decade:10, centimetres in a metre:100,
    metres in a kilometre:1000, grams in a kilogram:1000, wheels on a car:4,
    wheels on a bicycle:2, strings on a guitar:6, strings on a violin:4, colours in a rainbow:7,
    eggs in a dozen:12, cards in a deck:52, fingers on a hand:5, keys on a piano:88,
    squares on a chessboard:64"""),
    (
        "How many {subject}?",
        "How many {subject} are there?",
        "What is the number of {subject}?",
        "Tell me the number of {subject}.",
        "Can you tell me how many {subject} there are?",
        "Do you know how many {subject} there are?",
        "Tell me how many {subject} there are.",
        "What's the number of {subject}?",
        "I forgot how many {subject} there are.",
        "Give me the number of {subject}.",
        "So how many {subject} are there?",
    ),
    "There are {answer} {subject}.",
)
CURRENCY = FactFamily(
    "currency",
    _pairs("""Japan:yen, the United States:dollar, the United Kingdom:pound, France:euro,
    Germany:euro, Italy:euro, Spain:euro, India:rupee, China:yuan, Russia:rouble,
    Switzerland:franc, Sweden:krona, Norway:krone, Denmark:krone, Poland:zloty, Mexico:peso,
    Brazil:real, Turkey:lira, South Korea:won, Canada:dollar, Australia:dollar, Thailand:baht,
    Hungary:forint"""),
    (
        "What is the currency of {subject}?",
        "What currency is used in {subject}?",
        "Which currency does {subject} use?",
        "What money do they use in {subject}?",
        "What currency do people use in {subject}?",
        "Tell me the currency of {subject}.",
        "What's {subject}'s currency?",
        "Name the currency of {subject}.",
        "Which money is used in {subject}?",
        "In {subject}, what currency do I need?",
        "What is the money of {subject} called?",
    ),
    "The currency of {subject} is the {answer}.",
)
_TRANSLATION_ASKS = (
    "How do you say {subject} in @?",
    "What is {subject} in @?",
    "What is the @ word for {subject}?",
    "Translate {subject} into @.",
    "Translate the word {subject} to @.",
    'How do you say "{subject}" in @?',
    "What's {subject} in @?",
    "Say {subject} in @.",
    'Translate "{subject}" to @.',
    "How would I say {subject} in @?",
    "Give me the @ word for {subject}.",
    "{subject} in @?",
    "How is {subject} called in @?",
)


def _translation(language: str, pairs: str) -> FactFamily:
    asks = tuple(ask.replace("@", language) for ask in _TRANSLATION_ASKS)
    reply = f'The {language} word for "{{subject}}" is "{{answer}}".'
    return FactFamily(f"into_{language.lower()}", _pairs(pairs), asks, reply)


FRENCH = _translation(
    "French",
    """dog:chien, cat:chat, house:maison, water:eau, bread:pain, book:livre, hello:bonjour,
    red:rouge, thank you:merci, goodbye:au revoir, yes:oui, no:non, friend:ami, milk:lait,
    sun:soleil, blue:bleu""",
)
SPANISH = _translation(
    "Spanish",
    """dog:perro, cat:gato, house:casa, water:agua, bread:pan, book:libro, hello:hola, red:rojo,
    thank you:gracias, goodbye:adiós, yes:sí, no:no, friend:amigo, milk:leche, sun:sol,
    blue:azul""",
)
GERMAN = _translation(
    "German",
    """dog:Hund, cat:Katze, house:Haus, water:Wasser, bread:Brot, book:Buch, hello:hallo, red:rot,
    thank you:danke, goodbye:auf Wiedersehen, yes:ja, no:nein, friend:Freund, milk:Milch,
    sun:Sonne, blue:blau""",
)
TRIVIA: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (
            "What is the largest planet?",
            "Which planet is the biggest?",
            "What's the largest planet in the solar system?",
            "Name the biggest planet.",
            "Which is the largest planet of the solar system?",
            "Tell me the biggest planet.",
        ),
        "The largest planet is Jupiter.",
        "Jupiter",
    ),
    (
        (
            "Which planet is closest to the sun?",
            "What is the closest planet to the sun?",
            "Name the planet nearest to the sun.",
            "What planet is nearest the sun?",
            "Which planet is the nearest to the sun?",
            "Tell me the planet closest to the sun.",
        ),
        "The planet closest to the sun is Mercury.",
        "Mercury",
    ),
    (
        (
            "What is the highest mountain?",
            "Which mountain is the highest in the world?",
            "What's the tallest mountain on Earth?",
            "Name the highest mountain in the world.",
            "Which is the tallest mountain in the world?",
            "Tell me the highest mountain on Earth.",
        ),
        "The highest mountain in the world is Mount Everest.",
        "Everest",
    ),
    (
        (
            "What is the largest ocean?",
            "Which ocean is the biggest?",
            "What's the biggest ocean on Earth?",
            "Name the largest ocean.",
            "Which is the largest ocean in the world?",
            "Tell me the biggest ocean.",
        ),
        "The largest ocean is the Pacific Ocean.",
        "Pacific",
    ),
    (
        (
            "Who wrote Romeo and Juliet?",
            "Who is the author of Romeo and Juliet?",
            "Romeo and Juliet was written by whom?",
            "Name the author of Romeo and Juliet.",
            "Which author wrote Romeo and Juliet?",
            "Tell me who wrote Romeo and Juliet.",
        ),
        "Romeo and Juliet was written by William Shakespeare.",
        "Shakespeare",
    ),
    (
        (
            "Who painted the Mona Lisa?",
            "Who is the painter of the Mona Lisa?",
            "The Mona Lisa was painted by whom?",
            "Name the painter of the Mona Lisa.",
            "Which artist painted the Mona Lisa?",
            "Tell me who painted the Mona Lisa.",
        ),
        "The Mona Lisa was painted by Leonardo da Vinci.",
        "Leonardo",
    ),
    (
        (
            "At what temperature does water boil?",
            "When does water boil?",
            "What is the boiling point of water?",
            "How hot is boiling water?",
            "What temperature does water boil at?",
            "Tell me the boiling point of water.",
        ),
        "Water boils at 100 degrees Celsius.",
        "100",
    ),
    (
        (
            "At what temperature does water freeze?",
            "When does water freeze?",
            "What is the freezing point of water?",
            "How cold is freezing water?",
            "What temperature does water freeze at?",
            "Tell me the freezing point of water.",
        ),
        "Water freezes at 0 degrees Celsius.",
        "0",
    ),
)
FAMILIES = (
    *(CAPITALS, COLOURS_OF, OPPOSITES, NEXT_DAY, PREVIOUS_DAY, NEXT_MONTH, SOUNDS, BABIES, LEGS),
    *(CONTINENTS, SPOKEN, SYMBOLS, QUANTITIES, CURRENCY, FRENCH, SPANISH, GERMAN),
)
