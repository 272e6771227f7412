"""Visible things, the words that captions have for them, and what one word says about another.

The table was made by hand from the words of Flickr8k's training captions; `questions.mentions` reads captions with it.
"""

from __future__ import annotations

from dataclasses import dataclass


def listed(words: str) -> tuple[str, ...]:
    """Words of a literal list that are kept as one string, to be read at a glance."""
    return tuple(words.split())


COLOURS: dict[str, str] = {
    "red": "red",
    "blue": "blue",
    "green": "green",
    "yellow": "yellow",
    "orange": "orange",
    "purple": "purple",
    "pink": "pink",
    "black": "black",
    "white": "white",
    "brown": "brown",
    "gray": "gray",
    "grey": "gray",
    "tan": "tan",
}
NUMBERS: dict[str, int] = {"two": 2, "three": 3, "four": 4, "five": 5, "2": 2, "3": 3, "4": 4, "5": 5}
_IRREGULAR: dict[str, str] = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "snowman": "snowmen",
    "fisherman": "fishermen",
    "policeman": "policemen",
    "gentleman": "gentlemen",
    "mouse": "mice",
    "knife": "knives",
    "leaf": "leaves",
    "scarf": "scarves",
    "goose": "geese",
    "foot": "feet",
    "wolf": "wolves",
    "shelf": "shelves",
}
MASS = frozenset(
    listed(
        "water snow grass sand ice mud dirt fire smoke graffiti food hay money makeup luggage broccoli fruit sports_equipment "
        "clothing paper toilet_paper"
    )
)
PLURAL = frozenset(
    listed("sunglasses glasses skis goggles stairs jeans pants shorts scissors headphones rollerblades gloves boots flowers")
)


@dataclass(frozen=True, slots=True)
class Thing:
    """Words that name a thing, and what they tell about other things.

    `forms` are singular words (plurals are made from them), several words joined by `_`. `kinds` are the wider things that are
    there too. `unsure` are things that may well be in the photo unsaid. `verbs` is true where a form is also a verb, so that it
    counts only behind an article or the like. `asked` is false for what captions leave out so often that silence proves nothing;
    `votes` is how many captions must agree before the thing counts as seen.
    """

    forms: str
    kinds: str = ""
    unsure: str = ""
    verbs: bool = False
    asked: bool = True
    votes: int = 1


_CITY = "car truck bus bicycle motorcycle building sign window street sidewalk traffic_light person bag door stairs"
_WATERSIDE = "water ocean lake river beach sand boat rock wave pool"
_ROOM = "chair table window lamp picture television couch bed floor_rug cup bottle book door mirror curtain"
_MEAL = "food table plate cup bottle glass bowl chair fork knife cake"
_WILD = "mountain rock tree hill river cliff snow"

THINGS: dict[str, Thing] = {
    # People. "person" also takes every word for a role; the narrower words ask for two captions, because people guess.
    "person": Thing(
        "person someone somebody adult human crowd group_of_people player rider biker bicyclist bicycler cyclist motorcyclist "
        "skateboarder skater rollerblader snowboarder skier surfer swimmer climber hiker jogger dancer worker officer "
        "policeman soldier performer musician singer guitarist teenager teen youth student kid audience spectator onlooker "
        "athlete parent teammate opponent goalie catcher pitcher referee umpire coach wrestler boxer fighter "
        "boarder boater kayaker rower paddler diver waterskier wakeboarder windsurfer parasailer backpacker camper tourist traveler "
        "vendor shopper customer pedestrian passenger photographer cameraman artist painter clown cowboy jockey driver owner trainer "
        "bride groom bridesmaid cheerleader gymnast acrobat actor actress chef waiter waitress teacher doctor nurse "
        "pirate santa santa_claus fisherman fireman firefighter baby infant toddler contestant "
        "hockey_player quarterback linebacker footballer defender snowmobiler unicyclist rock_climber skydiver "
        "bystander passerby passersby protester reporter businessman guy lady gentleman fellow "
        "mom dad son daughter grandmother grandfather grandma nun priest monk farmer builder beachgoer hunter sailor",
        unsure="hat bag",
    ),
    "man": Thing("man guy gentleman businessman policeman fisherman fireman cowboy dad groom", kinds="person", unsure="boy", votes=2),
    "woman": Thing("woman lady bride mom bridesmaid actress grandmother", kinds="person", unsure="girl", votes=2),
    "boy": Thing("boy", kinds="child person", unsure="man", votes=2),
    "girl": Thing("girl", kinds="person", unsure="child woman", votes=2),
    "child": Thing("child kid toddler baby infant", kinds="person", unsure="boy girl", votes=1),
    "baby": Thing("baby infant", kinds="child person", votes=2),
    # Animals.
    "animal": Thing("animal creature"),
    "dog": Thing(
        "dog doggy doggie puppy pup terrier greyhound retriever shepherd german_shepherd collie poodle labrador doberman pitbull "
        "pit_bull dachshund husky corgi beagle bulldog boxer_dog dalmatian rottweiler chihuahua spaniel pug mutt hound weimaraner "
        "schnauzer sheepdog yorkie golden_retriever lab border_collie black_lab whippet canine",
        kinds="animal",
    ),
    "cat": Thing("cat kitten kitty", kinds="animal"),
    "horse": Thing("horse pony stallion mare", kinds="animal", unsure="person"),
    "cow": Thing("cow bull calf cattle steer", kinds="animal"),
    "sheep": Thing("sheep lamb ram", kinds="animal"),
    "bird": Thing("bird seagull gull pigeon duck goose eagle hawk parrot swan flamingo chicken owl heron pelican falcon", kinds="animal"),
    "elephant": Thing("elephant", kinds="animal"),
    "goat": Thing("goat", kinds="animal", unsure="sheep"),
    "monkey": Thing("monkey chimp gorilla", kinds="animal"),
    "camel": Thing("camel llama", kinds="animal"),
    "fish": Thing("fish", kinds="animal", verbs=True),
    "deer": Thing("deer elk moose", kinds="animal"),
    # Things with wheels, and boats.
    "bicycle": Thing("bicycle bike bmx_bike mountain_bike bmx_bicycle tricycle", unsure="motorcycle helmet person wheel"),
    "motorcycle": Thing(
        "motorcycle motorbike dirt_bike dirtbike motor_bike motocross_bike motocycle", unsure="bicycle helmet person wheel"
    ),
    "car": Thing("car jeep suv sedan taxi cab race_car racecar van minivan", kinds="vehicle", unsure="street truck wheel person"),
    "truck": Thing("truck pickup_truck pickup fire_truck", kinds="vehicle", unsure="car street wheel"),
    "bus": Thing("bus school_bus", kinds="vehicle", unsure="car street person"),
    "train": Thing("train subway_train locomotive", kinds="vehicle", unsure="person", verbs=True),
    "vehicle": Thing("vehicle atv four_wheeler", unsure="wheel street person motorcycle bicycle"),
    "airplane": Thing("airplane plane aeroplane aircraft", unsure="vehicle"),
    "boat": Thing(
        "boat sailboat rowboat canoe kayak raft ship speedboat motorboat yacht watercraft ferry paddle_boat",
        unsure="person water lake river ocean vehicle paddle",
    ),
    "scooter": Thing("scooter", unsure="person motorcycle helmet"),
    "stroller": Thing("stroller baby_carriage", unsure="baby child person"),
    "wheelchair": Thing("wheelchair", unsure="person"),
    "sled": Thing("sled sleigh toboggan snow_sled", unsure="snow person"),
    "cart": Thing("cart wagon shopping_cart carriage", unsure="wheel"),
    # Sport and play.
    "ball": Thing(
        "ball tennis_ball soccer_ball basketball_ball baseball_ball beach_ball volleyball_ball football_ball balls softball_ball "
        "basketballs",
        unsure="toy",
    ),
    "frisbee": Thing("frisbee disc disk flying_disc", unsure="toy ball"),
    "kite": Thing("kite", unsure="sky parachute"),
    "skateboard": Thing("skateboard skate_board longboard", unsure="person ramp"),
    "snowboard": Thing("snowboard snow_board", unsure="snow person skis"),
    "skis": Thing("skis", unsure="snow person snowboard ski_pole"),
    "surfboard": Thing("surfboard surf_board boogie_board bodyboard", unsure="person wave water ocean"),
    "wave": Thing("wave", unsure="ocean water surfboard beach", verbs=True),
    "tennis racket": Thing("tennis_racket tennis_racquet racket racquet", unsure="ball person"),
    "baseball bat": Thing("baseball_bat bat", unsure="ball person glove helmet", verbs=True),
    "swing": Thing("swing swing_set tire_swing", unsure="person rope", verbs=True),
    "slide": Thing("slide water_slide waterslide", unsure="person", verbs=True),
    "trampoline": Thing("trampoline"),
    "hula hoop": Thing("hula_hoop hoola_hoop"),
    "helmet": Thing("helmet hardhat", unsure="hat"),
    "goggles": Thing("goggles", unsure="glasses sunglasses helmet"),
    "toy": Thing("toy stuffed_animal doll teddy_bear", unsure="ball frisbee bone"),
    "balloon": Thing("balloon"),
    "guitar": Thing("guitar bass_guitar", unsure="microphone"),
    "drum": Thing("drum drum_set", unsure="guitar microphone"),
    "microphone": Thing("microphone mic", unsure="guitar"),
    "ramp": Thing("ramp half_pipe halfpipe skateboard_ramp quarter_pipe", unsure="skateboard"),
    "rope": Thing("rope tug_of_war", unsure="leash"),
    "leash": Thing("leash lead_rope", unsure="rope collar"),
    "tent": Thing("tent"),
    "umbrella": Thing("umbrella parasol"),
    "parachute": Thing("parachute parasail hang_glider"),
    "trophy": Thing("trophy medal"),
    "tennis court": Thing("tennis_court"),
    # What people wear and carry; shirts, trousers and shoes go unsaid too often to be asked for.
    "hat": Thing("hat cap beanie baseball_cap cowboy_hat sombrero ", unsure="helmet"),
    "sunglasses": Thing("sunglasses ", unsure="glasses goggles"),
    "glasses": Thing("glasses eyeglasses", unsure="sunglasses goggles cup"),
    "backpack": Thing("backpack rucksack knapsack", unsure="bag"),
    "bag": Thing("bag purse handbag tote suitcase luggage shopping_bag briefcase", unsure="backpack"),
    "scarf": Thing("scarf shawl"),
    "wig": Thing("wig"),
    "mask": Thing("mask", unsure="helmet goggles"),
    "shirt": Thing("shirt tshirt t-shirt tee tee-shirt jersey blouse", asked=False),
    "jacket": Thing("jacket coat parka", asked=False),
    "sweater": Thing("sweater sweatshirt hoodie", asked=False),
    "dress": Thing("dress gown", asked=False, verbs=True),
    "skirt": Thing("skirt", asked=False),
    "pants": Thing("pants", asked=False),
    "shorts": Thing("shorts", asked=False),
    "jeans": Thing("jeans", asked=False),
    "swimsuit": Thing("swimsuit bikini bathing_suit", asked=False),
    "wetsuit": Thing("wetsuit", asked=False),
    "vest": Thing("vest", asked=False),
    "uniform": Thing("uniform outfit", asked=False),
    "collar": Thing("collar", asked=False),
    "tie": Thing("tie necktie", asked=False, verbs=True),
    "wheel": Thing("wheel tire", asked=False),
    "glove": Thing("glove mitt", asked=False),
    "paddle": Thing("paddle oar", asked=False, verbs=True),
    "ski pole": Thing("ski_pole", asked=False),
    # Rooms and streets.
    "couch": Thing("couch sofa loveseat", unsure=_ROOM),
    "bed": Thing("bed mattress crib", unsure=_ROOM + " blanket"),
    "chair": Thing("chair armchair lawn_chair rocking_chair ", unsure=_ROOM + " bench"),
    "table": Thing("table desk picnic_table ", unsure=_ROOM + " " + _MEAL),
    "bench": Thing("bench park_bench", unsure="chair table"),
    "television": Thing("television tv", unsure=_ROOM),
    "computer": Thing("computer laptop", unsure=_ROOM + " phone"),
    "phone": Thing("phone cellphone cell_phone telephone mobile_phone cell"),
    "camera": Thing("camera video_camera", asked=False),
    "book": Thing("book", unsure="newspaper"),
    "newspaper": Thing("newspaper", unsure="book"),
    "bottle": Thing("bottle water_bottle beer_bottle", unsure="cup food table"),
    "cup": Thing("cup mug wine_glass coffee_cup", unsure="bottle food table glasses", verbs=True),
    "bowl": Thing("bowl", unsure=_MEAL),
    "plate": Thing("plate dish", unsure=_MEAL),
    "cake": Thing("cake birthday_cake cupcake", kinds="food", unsure=_MEAL),
    "food": Thing("food meal sandwich pizza snack ice_cream fruit hot_dog hamburger popsicle bread lunch dinner candy", unsure=_MEAL),
    "blanket": Thing("blanket quilt "),
    "fireplace": Thing("fireplace", unsure=_ROOM),
    "kitchen": Thing("kitchen", unsure=_ROOM + " " + _MEAL),
    "bathtub": Thing("bathtub tub", unsure="water"),
    "mirror": Thing("mirror"),
    "bucket": Thing("bucket pail"),
    "box": Thing("box cardboard_box", verbs=True, unsure="bag"),
    "flag": Thing("flag"),
    "statue": Thing("statue sculpture "),
    "fountain": Thing("fountain water_fountain", unsure="water pool"),
    "bridge": Thing("bridge overpass", unsure="river water street"),
    "stairs": Thing("stairs staircase stairway steps", asked=False),
    "window": Thing("window", asked=False),
    "door": Thing("door doorway", asked=False),
    "sign": Thing("sign banner billboard poster advertisement", asked=False),
    "traffic light": Thing("traffic_light stoplight", asked=False),
    "building": Thing("building house church store hotel barn skyscraper", asked=False, unsure=_CITY),
    "street": Thing("street road intersection crosswalk highway", unsure=_CITY + " car"),
    "path": Thing("path trail dirt_road walkway dirt_track", asked=False, unsure="street"),
    "sidewalk": Thing("sidewalk curb pavement", asked=False, unsure=_CITY),
    "fence": Thing("fence railing chainlink_fence", asked=False),
    "flower": Thing("flower daisy tulip sunflower bouquet", unsure="garden plant"),
    "plant": Thing("plant bush", asked=False),
    "tree": Thing("tree", asked=False),
    "hair": Thing("hair", asked=False),
    "sky": Thing("sky", asked=False),
    "wall": Thing("wall", asked=False),
    "rock": Thing("rock boulder stone", asked=False, unsure="cliff mountain"),
    "stick": Thing("stick ", verbs=True, unsure="toy bone"),
    "bone": Thing("bone", unsure="toy stick"),
    # Places.
    "water": Thing("water puddle stream creek waterfall", unsure=_WATERSIDE + " fountain"),
    "ocean": Thing("ocean sea", kinds="water", unsure=_WATERSIDE),
    "lake": Thing("lake pond", kinds="water", unsure=_WATERSIDE),
    "river": Thing("river stream creek", kinds="water", unsure=_WATERSIDE),
    "pool": Thing("pool swimming_pool", kinds="water", unsure="slide"),
    "beach": Thing("beach seashore ", unsure=_WATERSIDE + " person towel surfboard"),
    "sand": Thing("sand dune", unsure="beach water ocean"),
    "snow": Thing("snow snowbank snowball", unsure="mountain ice hill skis snowboard sled"),
    "ice": Thing("ice ice_rink", verbs=False, unsure="snow water"),
    "mountain": Thing("mountain peak mountaintop mountainside", unsure=_WILD),
    "cliff": Thing("cliff", unsure=_WILD),
    "hill": Thing("hill hillside", asked=False, unsure=_WILD),
    "grass": Thing("grass lawn", asked=False),
    "forest": Thing("forest woods", asked=False),
    "waterfall": Thing("waterfall", kinds="water", unsure="river rock cliff"),
    "campfire": Thing("campfire bonfire"),
    "carousel": Thing("carousel merry-go-round"),
    "tunnel": Thing("tunnel"),
    "playground": Thing("playground jungle_gym", unsure="swing slide child person"),
    "bubble": Thing("bubble", unsure="water"),
    "cigarette": Thing("cigarette cigar"),
}
HINTS: tuple[tuple[str, str], ...] = (
    (
        "he she his her him they their them himself herself themselves who someone team couple friend friends family mother father "
        "brother sister band male female member runner competitor participant hand hands face arms hair wearing dressed people's",
        "person",
    ),
    ("biking cycling bmx bikes cyclist bicyclist biker bicycler rider riders cyclists bikers", "person bicycle motorcycle helmet"),
    ("riding rides ride ridden race races racing racer racers wheelie", "person bicycle motorcycle horse car helmet vehicle"),
    ("motorcyclist motocross motorcyclists", "person motorcycle bicycle helmet"),
    (
        "surfing surfer surfers surf surfs wakeboarding waterskiing windsurfing",
        "person surfboard wave water ocean beach boat kite",
    ),
    ("skiing skier skiers ski skiis", "person skis snow snowboard mountain helmet goggles"),
    ("snowboarding snowboarder snowboarders", "person snowboard skis snow mountain helmet goggles"),
    (
        "skateboarding skateboarder skateboarders skater skaters skating skate skates trick tricks",
        "person skateboard ramp scooter bicycle",
    ),
    (
        "soccer football basketball baseball volleyball softball rugby lacrosse hockey golf cricket croquet player players game",
        "person ball helmet glove baseball_bat",
    ),
    ("baseball batter batting pitcher softball cricket", "person ball baseball_bat glove helmet hat"),
    ("tennis badminton", "person ball tennis_racket tennis_court"),
    (
        "fetch fetching catch catches catching throwing throws toy something object objects item retrieving mouth",
        "ball frisbee stick toy bone rope bird fish",
    ),
    ("play playing plays playful", "ball toy"),
    ("swim swims swimming splash splashes splashing wading wade wet dives diving", "water pool lake river ocean wave beach"),
    ("rowing paddling kayaking rafting canoeing sailing fishing dock pier harbor", "person boat water lake river ocean fish"),
    ("city downtown traffic parking driveway parked urban town crossing corner", _CITY),
    ("winter snowy icy sledding snowsuit", "snow ice sled"),
    ("sandy desert", "sand beach"),
    ("climbing climber climbs rappelling climb hiking hiker hikers", "person rope cliff mountain rock backpack helmet"),
    (
        "room restaurant cafe office bar diner indoors inside party bedroom class classroom",
        _ROOM + " " + _MEAL + " person couch computer",
    ),
    ("eating eats eat drinking drinks drink picnic cooking beer coffee", _MEAL),
    ("music concert instrument instruments band stage singing sings performing", "guitar drum microphone person"),
    ("reading reads read", "book newspaper"),
    ("talking talks talk calling", "phone"),
    ("smoking smokes smoke", "cigarette"),
    ("sitting sits seated sit", "chair bench couch stairs"),
    ("sleeping laying lying lies resting lays asleep", "bed couch blanket"),
    ("carrying carries holding holds", "bag"),
    ("camping camp", "tent campfire"),
    ("costume costumes parade halloween festival", "mask hat wig flag balloon"),
    ("rodeo horseback jockey jockeys polo", "horse person hat"),
    ("hood bandanna bandana headband headscarf turban veil scarf visor", "hat scarf mask"),
    ("glass wine juice soda beverage", "cup bottle glasses"),
    ("branch branches log logs twig", "stick tree"),
    ("shore shoreline bank coast", "beach water lake ocean river sand"),
    ("stool stools recliner", "chair"),
    ("counter bar shelf", "table"),
    ("towel cloth sheet", "blanket"),
    ("monument figure", "statue"),
    ("jet crane machine tractor", "airplane vehicle truck boat"),
    ("airport flight", "airplane"),
    ("station tracks subway rail rails", "train person"),
    ("garden blossoms floral", "flower"),
    ("park field area course yard backyard", "bench"),
    ("group crowd team people children kids family couple", "man woman boy girl child hat bag"),
    ("tug tugging pulling", "rope leash toy"),
    ("motorized vehicle", "car truck motorcycle"),
    ("board boards boarding", "surfboard snowboard skateboard"),
    ("statue picture painting mural art", "person animal"),
    ("uniform uniforms", "hat helmet"),
    ("muzzle muzzled muzzles", "mask"),
    ("sunlight sun rain raining", "umbrella sunglasses"),
    ("tube tubing innertube", "sled boat water snow"),
    ("figure figures silhouette silhouettes shadow", "person statue"),
    (
        "runner runners marathon jogging jogs jogger parade market crowd sidewalk building buildings outside pavement bus car cars",
        "street car person",
    ),
)
"""(words, things): words that make other things likely without naming them. They forbid the answer "no" and never prove a "yes"."""


def plural_of(noun: str) -> str:
    """The plural of a singular noun (of its last word)."""
    *head, last = noun.split(" ")
    if last in MASS or last in PLURAL or last in ("sheep", "fish", "deer"):
        many = last
    elif last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = last + "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return " ".join([*head, many])


def is_plural(noun: str) -> bool:
    """Whether the noun has a plural only ("skis")."""
    return noun.split(" ")[-1] in PLURAL


def with_article(noun: str) -> str:
    """`a dog`, `an umbrella`, and no article for `snow` and `skis`."""
    if noun.split(" ")[-1] in MASS or is_plural(noun):
        return noun
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith(('uni', 'uku')) else 'a'} {noun}"
