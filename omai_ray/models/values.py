"""Slot values: names, places and things that dialogues are about."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split()))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


FIRST_NAMES = _words("""
Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina Oscar Paula Quentin
Rosa Sam Tina Ursula Victor Wendy Xavier Yara Zoe Anna Ben Clara Daniel Eva Felix Georgia Hugo Ines
Jonas Kate Lucas Mia Noah Olivia Peter Ruth Simon Tom Uma Vera Will Yusuf Zara Ahmed Aisha Akira
Alexander Amelia Andrea Anita Anton Arjun Astrid Beatrice Boris Bruno Camila Carlos Chen Chloe Dana
Deepak Diego Dmitri Edward Elena Elif Elias Emil Emily Erik Esther Fatima Fiona Gabriel George
Giulia Hana Hannah Harry Hassan Helen Ibrahim Isabel Ivan Jacob James Jana Jane Javier Jean Jenny
Joan John Jose Julia Kai Karim Kenji Kim Laura Layla Lena Liam Lily Linda Louis Luca Lucy Magda
Mark Marta Martin Mary Max Mei Michael Mohamed Monica Nadia Naomi Nikolai Omar Pablo Patricia Paul
Pedro Priya Rachel Raj Ravi Rebecca Richard Robert Sakura Sara Sean Sofia Stefan Steve Susan Sven
Tara Thomas Theo Vikram Yuki Zainab
""")

CITIES = _words("""
Amsterdam Athens Atlanta Auckland Baghdad Bangkok Barcelona Basel Beirut Belfast Bergen Berlin Bern
Bilbao Birmingham Bogota Bologna Boston Brisbane Bristol Brussels Bucharest Budapest Cairo Calgary
Cardiff Casablanca Chicago Cologne Copenhagen Dakar Dallas Delhi Denver Detroit Dresden Dubai Dublin
Edinburgh Florence Frankfurt Geneva Genoa Glasgow Granada Graz Hamburg Hanoi Havana Helsinki Houston
Istanbul Jakarta Johannesburg Karachi Kathmandu Kiev Kyoto Lagos Lahore Leeds Leipzig Lima Lisbon
Liverpool London Lyon Madrid Malaga Manchester Manila Marseille Melbourne Miami Milan Montreal
Moscow Mumbai Munich Nairobi Naples Nice Osaka Oslo Ottawa Oxford Palermo Paris Perth Philadelphia
Phoenix Porto Portland Prague Quito Reykjavik Riga Rome Rotterdam Salzburg Santiago Seattle Seoul
Seville Shanghai Singapore Sofia Stockholm Sydney Taipei Tallinn Tehran Tokyo Toronto Toulouse Tunis
Turin Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Wellington York Zagreb Zurich
""")

COLOURS = _words(
    "red blue green yellow purple orange pink brown black white grey silver gold "
    "turquoise violet crimson indigo teal beige maroon navy lavender scarlet"
)
ANIMALS = _words(
    "dog cat rabbit hamster parrot horse turtle goldfish pony lizard canary ferret "
    "snake duck goat mouse"
)
PET_NAMES = _words(
    "Rex Bella Max Luna Charlie Milo Daisy Rocky Coco Buddy Molly Oscar Pepper "
    "Ginger Shadow Simba Nala Toby Biscuit Whiskers Fluffy Patch Lucky Rusty Misty "
    "Smokey Bruno Tiger Felix Zeus Ruby Poppy Oreo Cookie Pixel Waffles Noodle"
)
FOODS = _words(
    "pizza pasta rice sushi soup salad bread cheese curry tacos noodles pancakes "
    "chocolate apples mangoes dumplings lasagne burgers paella risotto falafel stew "
    "strawberries waffles omelettes porridge couscous ramen"
)
JOBS = _lines("""teacher, doctor, nurse, baker, pilot, farmer, lawyer, plumber, chef, painter,
writer, engineer, dentist, singer, actor, carpenter, librarian, firefighter, gardener, scientist,
musician, butcher, banker, barber, judge, sailor, soldier, tailor, driver, photographer,
programmer, electrician, journalist, waiter, architect""")
HOBBIES = _words(
    "painting swimming reading cooking dancing hiking fishing gardening cycling "
    "running singing knitting skiing climbing sailing drawing chess photography "
    "yoga karate baking camping surfing pottery"
)
LANGUAGES = _words(
    "French Spanish German Italian Portuguese Dutch Swedish Polish Greek Turkish "
    "Arabic Hindi Japanese Korean Chinese Russian Finnish Danish Czech Hungarian"
)
CURRENCIES = _words(
    "USD EUR GBP JPY CHF CAD AUD SEK NOK DKK PLN INR CNY BRL MXN ZAR AED ARS BGN CLP COP CZK EGP "
    "HKD HUF IDR ILS ISK KES KRW MYR NGN NZD PEN PHP QAR RON RSD SAR SGD THB TRY TWD UAH VND XOF"
)

NOUNS = _words("""
apple arrow artist autumn balloon banana basket beach bell bicycle bird blanket blossom boat book
bottle box branch bread bridge brick brush bucket bus butter button cabin cable cactus cake camera
candle candy canyon captain car carpet carrot castle cave chair cherry chess chicken circle clock
cloud coat coffee coin comet compass copper coral corn cotton cousin cow crayon crystal cup curtain
dance desert desk diamond dinner dolphin donkey door dragon drawer dream drum dust eagle earth echo
egg elephant engine envelope evening falcon farm feather fence field finger fire fish flag flame
flower flute fog forest fork fountain fox frog fruit garden gate ghost giraffe glass glove goose
grape grass guitar hammer harbour hat hill honey horizon horn hotel house ice island jacket jar
jewel juice jungle kettle key king kitchen kite knife ladder lake lamp lantern leaf lemon letter
library light lion lizard lock maple marble market mask meadow melon metal mirror monkey moon
morning mountain music nail needle nest night notebook ocean olive onion orchard owl paint palace
panda paper parcel park path peach pearl pencil penguin pepper piano picture pillow pine planet
plate pocket pond potato prince pumpkin puzzle queen rabbit rain rainbow raven ribbon ring river
road robot rocket roof rope rose saddle salt sand school scissors sea seed shadow sheep shell ship
shirt shoe silk sky snail snow soap sofa spider spoon spring square squirrel stamp star statue stone
storm story stove street sugar summer sun sword table tea teapot temple tent thunder ticket tiger
toast tomato tower town toy train treasure tree trumpet tulip tunnel umbrella valley vase village
violin wagon wall water wave whale wheel whistle willow wind window winter wolf wood wool zebra
""")
ADJECTIVES = _words("""
ancient big bitter blue brave bright calm clever cold cosy crazy curious dark deep dry early empty
fast fierce funny gentle giant golden green happy heavy hidden hollow honest hungry kind large lazy
light little lonely loud lucky modern mighty narrow new noisy old orange pale patient polite proud
purple quick quiet rapid red round sad sharp shiny short shy silent silver simple sleepy slow small
smooth soft sour strange strong sunny sweet tall thin tiny tired warm wet white wild wise yellow
young
""")
VERBS_PAST = _words("""
admired answered baked borrowed bought broke built carried caught chased cleaned climbed collected
counted crossed discovered drew dropped fed filled followed forgot found hid joined kicked lifted
liked lost loved mended moved opened ordered packed painted planted pulled pushed read repaired saw
sold stole threw touched visited washed watched wrote
""")
RARE_TEXT = _words(
    "café naïve 你好 世界 привет мир こんにちは 안녕 مرحبا שלום γειά été über señor façade "
    "jalapeño Zürich Malmö Łódź 東京 ありがとう 😀 🎉 🚀 ❤️ ☕ crème smörgåsbord Ångström "
    "piñata Straße Düsseldorf São Kraków Reykjavík"
)

TOPICS = _lines("""quantum physics, the French Revolution, black holes, photosynthesis, jazz,
medieval history, string theory, plate tectonics, the stock market, ancient Egypt, opera,
economics, machine learning, knitting patterns, nuclear fusion, the Roman Empire,
football tactics, cricket, the immune system, climate policy, tax law, modern art, poetry,
blockchain, genetics, sculpture, philosophy, the Silk Road, rocket engines, coral reefs,
the Renaissance, linguistics, baroque music, volcanoes, dinosaurs, ballet, mythology,
organic chemistry, car engines, wine making, geology, psychology, astronomy, the Cold War,
vaccines, cathedral architecture, bird migration, game theory, sourdough, submarines,
cryptography, the human brain, glaciers, typography, sociology, robotics""")
ACTIVITIES = _lines("""fix a bicycle, bake sourdough bread, train a dragon, build a house,
fly a plane, repair a fridge, paint a portrait, grow tomatoes, invest my savings, win at poker,
write a novel, learn the violin, lose weight, knit a scarf, start a business, climb Everest,
brew beer, ride a horse, cook a turkey, change a tyre, restore a car, make a film, tame a lion,
sew a dress, sail a boat, play the drums, get a visa, sell my house, renovate a kitchen,
raise chickens, cure a cold, prepare for a marathon, tile a bathroom, pick a lock,
plan a wedding, file my taxes, tune a piano""")
KINDS_OF_WORK = _lines("""novel, film, song, painting, symphony, poem, play, album, company,
bridge, theory, sculpture, game, machine, opera, museum""")
