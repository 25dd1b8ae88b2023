"""Names of classes, in the order of their indices.

BigEarthNet's order is the official one, which torchgeo and the SeCo family share;
ConfigILM sorts the 19 names by alphabet, and TFDS the 43: compare by name, not index.
"""

# Pixel labels use it where no class of the nomenclature is known.
NO_CLASS = 255

BIGEARTHNET_19 = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural "
    "vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)

# CORINE level-3 classes in the order of their codes, each with its place in
# BIGEARTHNET_19; None where the 19-class nomenclature drops the class.
BIGEARTHNET_43_TO_19 = {
    "Continuous urban fabric": 0,
    "Discontinuous urban fabric": 0,
    "Industrial or commercial units": 1,
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": 2,
    "Permanently irrigated land": 2,
    "Rice fields": 2,
    "Vineyards": 3,
    "Fruit trees and berry plantations": 3,
    "Olive groves": 3,
    "Pastures": 4,
    "Annual crops associated with permanent crops": 3,
    "Complex cultivation patterns": 5,
    "Land principally occupied by agriculture, with significant areas of natural "
    "vegetation": 6,
    "Agro-forestry areas": 7,
    "Broad-leaved forest": 8,
    "Coniferous forest": 9,
    "Mixed forest": 10,
    "Natural grassland": 11,
    "Moors and heathland": 12,
    "Sclerophyllous vegetation": 12,
    "Transitional woodland/shrub": 13,
    "Beaches, dunes, sands": 14,
    "Bare rock": None,
    "Sparsely vegetated areas": 11,
    "Burnt areas": None,
    "Inland marshes": 15,
    "Peatbogs": 15,
    "Salt marshes": 16,
    "Salines": 16,
    "Intertidal flats": None,
    "Water courses": 17,
    "Water bodies": 17,
    "Coastal lagoons": 18,
    "Estuaries": 18,
    "Sea and ocean": 18,
}
BIGEARTHNET_43 = tuple(BIGEARTHNET_43_TO_19)

# CORINE's own codes of these classes, as maps of pixels have them.
CORINE_CODES = (
    *(111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142),
    *(211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244),
    *(311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334),
    *(411, 412, 421, 422, 423, 511, 512, 521, 522, 523),
)

# The simplified IGBP scheme of SEN12MS and of the 2020 Data Fusion Contest.
IGBP_10 = (
    "Forest",
    "Shrubland",
    "Savanna",
    "Grassland",
    "Wetland",
    "Cropland",
    "Urban and built-up land",
    "Snow and ice",
    "Barren",
    "Water",
)

# The IGBP classes 1 to 17 of MODIS land cover, each with its place in IGBP_10.
IGBP_17_TO_10 = {
    "Evergreen needleleaf forest": 0,
    "Evergreen broadleaf forest": 0,
    "Deciduous needleleaf forest": 0,
    "Deciduous broadleaf forest": 0,
    "Mixed forest": 0,
    "Closed shrubland": 1,
    "Open shrubland": 1,
    "Woody savanna": 2,
    "Savanna": 2,
    "Grassland": 3,
    "Permanent wetland": 4,
    "Cropland": 5,
    "Urban and built-up land": 6,
    "Cropland and natural vegetation mosaic": 5,
    "Permanent snow and ice": 7,
    "Barren": 8,
    "Water": 9,
}
IGBP_17 = tuple(IGBP_17_TO_10)

# So2Sat's order: the built types 1 to 10, then the land cover types A to G.
LOCAL_CLIMATE_ZONES = (
    "Compact high-rise",
    "Compact mid-rise",
    "Compact low-rise",
    "Open high-rise",
    "Open mid-rise",
    "Open low-rise",
    "Lightweight low-rise",
    "Large low-rise",
    "Sparsely built",
    "Heavy industry",
    "Dense trees",
    "Scattered trees",
    "Bush or scrub",
    "Low plants",
    "Bare rock or paved",
    "Bare soil or sand",
    "Water",
)
