/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.routes

import dev.tideline.core.Events
import dev.tideline.core.Knots
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.Tonnes
import dev.tideline.core.into
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId
import dev.tideline.ships.ShipKind

private val SEA = WaypointId("sea")
private val BEND = WaypointId("bend")
private val PORT = WaypointId("port")

private fun channel(one: WaypointId, other: WaypointId, miles: Double, depth: Double): Channel =
    Channel(
        one = one,
        other = other,
        miles = miles,
        depth = Metres(depth),
        speedLimit = Knots(10.0),
    )

private fun tankerOf(draught: Double): Ship =
    Ship(
        id = ShipId("9321483"),
        name = "Amber Tanker",
        kind = ShipKind.TANKER,
        length = Metres(180.0),
        draught = Metres(draught),
        deadweight = Tonnes(45_000.0),
    )

/** Describes which way ships of different draught are sent. */
class RouteFinderSpec : Spec({
    fun finder(): RouteFinder =
        RouteFinder(
            channels = listOf(
                channel(SEA, PORT, miles = 4.0, depth = 7.0),
                channel(SEA, BEND, miles = 5.0, depth = 15.0),
                channel(BEND, PORT, miles = 3.0, depth = 15.0),
            ),
            events = Events(),
            clock = StillClock(Moment.of(day = 1, hour = 6)),
        )

    case("a light ship takes the short cut") {
        val route = given("an empty tanker") { finder().findRoute(tankerOf(5.0), SEA, PORT, Knots(8.0)) }
        expect(route.into { it.waypoints }).toGive(listOf(SEA, PORT))
        expect(route.into { it.duration }).toGive(Span.ofMinutes(30))
    }

    case("a deep ship goes round by the bend and keeps to the speed limit") {
        val route = given("a laden tanker") { finder().findRoute(tankerOf(11.0), SEA, PORT, Knots(14.0)) }
        expect(route.into { it.waypoints }).toGive(listOf(SEA, BEND, PORT))
        expect(route.into { it.duration }).toGive(Span.ofMinutes(48))
    }

    case("a closed channel is used by nobody") {
        val finder = given("a harbour with three channels") { finder() }
        expect(finder.close(PORT, BEND)).toBeDone()
        expect(finder.close(PORT, BEND)).toBeRefusedFor(Reason.NOT_FOUND)
        expect(finder.findRoute(tankerOf(11.0), SEA, PORT, Knots(9.0))).toBeRefusedFor(Reason.UNSAFE)
    }
})
